"""An S3 server where SeaweedFS listens; it keeps nothing and believes every key."""

import threading

import boto3
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="0.0.0.0", port=8333)
server.start()
# What SeaweedFS answers to its health check, this one answers to a look into a bucket of that name.
boto3.client("s3", endpoint_url="http://127.0.0.1:8333", region_name="us-east-1").create_bucket(Bucket="healthz")
threading.Event().wait()
