"""What went wrong, as one sentence for the person at the terminal."""

import traceback
from pathlib import Path

import grpc
import psycopg
from confluent_kafka import KafkaError, KafkaException
from sqlalchemy.exc import DBAPIError

from shop_common.db.database import cause_of
from shop_common.db.schema import SchemaError
from shop_common.errors import DatabaseUnavailable, ShopError
from shopctl.system.runfile import NotRunning


class CommandFailed(Exception):
    """The command can't do its work; the text is a whole sentence for the user."""


def sentence(error: Exception) -> str:
    """One line on what failed; for what nobody foresaw, with the place in the code."""
    match error:
        case DatabaseUnavailable(__cause__=BaseException()):
            said = f"{error}: {cause_of(error)}"
        case CommandFailed() | NotRunning() | SchemaError() | ShopError():
            said = str(error)
        case grpc.RpcError():
            said = rpc_failure(error)
        case KafkaException():
            said = kafka_failure(error)
        case DBAPIError() | psycopg.Error():
            said = f"the database says: {getattr(error, 'orig', error)}"
        case _:
            said = f"{type(error).__name__}: {error} ({_place(error)}; a defect of devstack)"
    return " ".join(said.split())


def rpc_failure(error: grpc.RpcError) -> str:
    """The status of a failed call in words."""
    return f"the call was answered {error.code().name}: {error.details()}"


def kafka_failure(error: KafkaException) -> str:
    """What the Kafka client says, without its own notation."""
    cause = error.args[0] if error.args else error
    if not isinstance(cause, KafkaError):
        return f"Kafka: {cause}"
    if cause.name() in {"_TRANSPORT", "_ALL_BROKERS_DOWN", "_TIMED_OUT"}:
        return "Kafka does not answer; is the broker running, and is --bootstrap right?"
    return f"Kafka says {cause.name()}: {cause.str()}"


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
