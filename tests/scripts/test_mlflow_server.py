"""`make mlflow` points to the training runs of the experiment."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from scripts.mlflow_server import training_view

pytestmark = pytest.mark.integration


def test_the_address_is_that_of_the_experiments_training_runs(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        connection.execute("INSERT INTO experiments VALUES (0, 'Default'), (7, 'iusp')")
    address = "http://127.0.0.1:5001/#/experiments/7/runs?workflowType=machine_learning"
    assert training_view(database, "iusp", 5001) == address


def test_before_the_first_run_it_is_the_start_page_and_no_database_is_made(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    assert training_view(database, "iusp", 5000) == "http://127.0.0.1:5000"
    assert not database.exists()
