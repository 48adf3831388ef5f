"""Formats failures as one sentence for the user."""

import traceback
from pathlib import Path

import grpc
import psycopg
from confluent_kafka import KafkaError, KafkaException
from sqlalchemy.exc import DBAPIError

from shop_common.db.database import cause_of
from shop_common.db.schema import SchemaError
from shop_common.environment.certificates import CertificateError
from shop_common.environment.settings import WrongSettings
from shop_common.errors import DatabaseUnavailable, ShopError
from shop_common.events.kafka_connection import KafkaUnreachable
from shopctl.system.runfile import NotRunning


class CommandFailed(Exception):
    """The command failed; the message is a complete sentence for the user."""


def sentence(error: Exception) -> str:
    """Return one line that explains the failure. For an unexpected error, the line includes the place in the code."""
    match error:
        case DatabaseUnavailable(__cause__=BaseException()):
            message = f"{error}: {cause_of(error)}"
        case CertificateError() | CommandFailed() | NotRunning() | SchemaError() | ShopError() | WrongSettings():
            message = str(error)
        case grpc.RpcError():
            message = rpc_failure(error)
        case KafkaException():
            message = kafka_failure(error)
        case KafkaUnreachable():
            message = f"Kafka refuses the connection or does not respond: {error}"
        case DBAPIError() | psycopg.Error():
            message = f"the database reported: {getattr(error, 'orig', error)}"
        case _:
            message = f"{type(error).__name__}: {error} ({_place(error)}; a bug in this tool)"
    return " ".join(message.split())


def rpc_failure(error: grpc.RpcError) -> str:
    """Return the status and details of a failed call."""
    return f"the call failed with {error.code().name}: {error.details()}"


def kafka_failure(error: KafkaException) -> str:
    """Return the message of the Kafka client, without the KafkaError{…} around it."""
    cause = error.args[0] if error.args else error
    if not isinstance(cause, KafkaError):
        return f"Kafka: {cause}"
    if cause.name() in {"_TRANSPORT", "_ALL_BROKERS_DOWN", "_TIMED_OUT"}:
        return "Kafka does not respond; is the broker running, and are --bootstrap and KAFKA_SECURITY_PROTOCOL correct?"
    return f"Kafka reported {cause.name()}: {cause.str()}"


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
