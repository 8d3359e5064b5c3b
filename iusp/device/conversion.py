"""Convert a network to ONNX files: the network alone and end to end, in float32 and in int8."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import compose
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from iusp.artifacts.evaluation import NETS, WHOLE
from iusp.config.features import Features
from iusp.device.front_end import IR_VERSION, OPSET, front_end
from iusp.device.runtime import open_session
from iusp.errors import InputError
from iusp.features.log_mel import frame_count
from iusp.io.files import atomic
from iusp.models.layers import Probabilities, Tagger


def write_onnx(network: Tagger, config: Features, calibration: NDArray[np.float16], folder: Path) -> None:
    """Write the files `NETS`, from `log_mel` (B, T, M), and `WHOLE`, from `waveform` (B, samples), to `probabilities`.

    The same network and clips give the same bytes. Quantisation is static, with one scale per channel of the
    weights. It covers the convolutions and their activation functions; front-end, LSTM and head stay in float32.

    Args:
        network: network in evaluation mode, on the CPU.
        config: settings of the front-end.
        calibration: log-mel (N, T, M) of training clips, from which the range of every activation is measured.
        folder: folder to write into.

    Raises:
        InputError: a file gives different output for a batch of 3 than for single clips.
    """
    with tempfile.TemporaryDirectory() as temporary:
        plain, quantised = Path(temporary) / NETS[0], Path(temporary) / NETS[1]
        _export(network, config, plain)
        _quantise(plain, quantised, calibration)
        for net, whole, source in zip(NETS, WHOLE, (plain, quantised), strict=True):
            net_model = _bare(onnx.load(source))
            prefixed = compose.add_prefix(front_end(config), "front_end/", rename_inputs=False, rename_outputs=False)
            whole_model = _bare(compose.merge_models(prefixed, net_model, [("log_mel", "log_mel")]))
            for name, model in ((net, net_model), (whole, whole_model)):
                with atomic(folder / name) as path:
                    path.write_bytes(model.SerializeToString(deterministic=True))
                _check_batch(folder / name)


def _export(network: Tagger, config: Features, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # The exporter treats a batch of one as a constant.
    example = torch.zeros(2, frame_count(config), config.mel_bands)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # torch.export takes a hundred times as long, and gives an LSTM's nodes different names each time.
        torch.onnx.export(
            Probabilities(network).eval(),
            (example,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["log_mel"],
            output_names=["probabilities"],
            dynamic_axes={"log_mel": {0: "batch"}, "probabilities": {0: "batch"}},
        )


class _Clips(CalibrationDataReader):  # type: ignore[misc]  # the base class has no types
    def __init__(self, calibration: NDArray[np.float16]) -> None:
        self.clips: Iterator[NDArray[np.float16]] = iter(calibration)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        clip = next(self.clips, None)
        return None if clip is None else {"log_mel": clip[None].astype(np.float32)}


def _quantise(source: Path, target: Path, calibration: NDArray[np.float16]) -> None:
    # ONNX Runtime advises to fold batch normalisation first, which the exporter has done.
    logging.getLogger().addFilter(_no_advice)
    try:
        quantize_static(
            source,
            target,
            _Clips(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Weights of 7 bits. On processors with AVX2 and without VNNI, ONNX Runtime adds two products of 8 by 8 bits
            # in 16 bits. That overflowed, and probabilities were off by up to 0.07.
            reduce_range=True,
            op_types_to_quantize=["Conv", "Relu", "Clip"],
        )
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what describes this machine instead of the network."""
    del model.metadata_props[:]
    model.doc_string = model.producer_version = ""
    model.producer_name, model.ir_version = "iusp", IR_VERSION
    del model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output, model.graph):
        part.doc_string = ""
        del part.metadata_props[:]
    return model


def _check_batch(path: Path) -> None:
    """Check that a batch of 3 gives the same output as its clips one by one."""
    session = open_session(path)
    (given,) = session.get_inputs()
    clips = np.random.default_rng(0).normal(size=(3, *given.shape[1:])).astype(np.float32)
    together = session.run(None, {given.name: clips})[0]
    alone = np.concatenate([session.run(None, {given.name: clip[None]})[0] for clip in clips])
    if together.shape != alone.shape or not np.allclose(together, alone, atol=1e-4):
        raise InputError(f"{path}: a batch of 3 gives different output from single clips; choose another architecture")
