"""A broker that asks who is there: TLS, certificates of clients, passwords, rights. And what is said when it says no."""

from __future__ import annotations

import argparse
import base64
import datetime
import ipaddress
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed: pip install confluent-kafka")

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fuelrail import FuelrailError, Source
from kafka.broker import Broker
from streams import QUIET, Topic, once
from support import SLACK, Loader, at_most, fuelrail, wait_until

from conftest import kafka_broker

PASSWORD = "correct-horse-7"
PLAIN, SCRAM, OAUTH = "PLAIN", "SCRAM-SHA-512", "OAUTHBEARER"
AUDIENCE = "kafka-of-the-tests"

#: What is refused is said this soon: it is not waited out like a broker that is down.
REFUSED_SECONDS = 10


class Authority:
    """Signs certificates; everything in PEM files."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key, authority=True)
        #: The certificate that the others are checked by.
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate and its key, for this name on this machine."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, authority: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([here]), critical=False)
            uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        return builder.sign(self._key, hashes.SHA256())


class Identities:
    """An identity provider: gives a token to whoever knows the secret, as OAuth's client credentials want it."""

    def __init__(self, folder: Path) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        numbers = self._key.public_key().public_numbers()
        known = {
            "kty": "RSA",
            "kid": "one",
            "alg": "RS256",
            "use": "sig",
            "n": base64url(numbers.n.to_bytes(256, "big")),
            "e": base64url(numbers.e.to_bytes(3, "big")),
        }
        #: What the broker checks tokens by.
        self.keys = folder / "keys.json"
        self.keys.write_text(json.dumps({"keys": [known]}))
        identities = self
        #: Tokens given so far, and how long the next ones are good for, in seconds.
        self.given, self.lifetime = 0, 60
        #: Whether it answers nobody, and how many did not get a token.
        self.down, self.refused = False, 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                user, _, secret = (
                    base64.b64decode(self.headers["Authorization"].removeprefix("Basic "))
                    .decode()
                    .partition(":")
                )
                self.rfile.read(int(self.headers["Content-Length"]))
                known = secret == PASSWORD and not identities.down
                identities.refused += not known
                answer = (
                    {
                        "access_token": identities.token(user),
                        "expires_in": identities.lifetime,
                        "token_type": "Bearer",
                    }
                    if known
                    else {"error": "invalid_client"}
                )
                body = json.dumps(answer).encode()
                self.send_response(200 if known else 503 if identities.down else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"

    def token(self, user: str) -> str:
        """One for this user, signed."""
        self.given += 1
        now = int(time.time())
        claims = {
            "sub": user,
            "aud": AUDIENCE,
            "iss": self.url,
            "iat": now,
            "exp": now + self.lifetime,
            "scope": "kafka",
        }
        parts = [base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "one"}, claims)]
        signed = ".".join(parts)
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{base64url(signature)}"

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()


def base64url(data: bytes) -> str:
    """As tokens have it: without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@dataclass
class Secure:
    """A broker, and what its users know."""

    broker: Broker
    authority: Authority
    identities: Identities
    ways: dict[str, dict[str, str]]

    def url(self, topic: Topic, way: str) -> str:
        """The topic through this door."""
        protocol = self.ways[way]["security.protocol"]
        return f"kafka://{self.broker.listeners[protocol]}/{topic.name}"

    def loader(self, topic: Topic, way: str, properties: Mapping[str, str] | None = None) -> Any:
        """A loader of what is there, through this door, with what its user knows or something else."""
        source = {"end": "end", "properties": self.ways[way] if properties is None else dict(properties)}
        return Loader(self.url(topic, way), **topic.options(source_options=source))

    def allow(self, user: str, topic: Topic, *operations: AclOperation) -> None:
        """Rights of a user to a topic."""
        self._grant(user, ResourceType.TOPIC, topic.name, operations)

    def allow_group(self, user: str, group: str) -> None:
        """The right to commit for a group."""
        self._grant(user, ResourceType.GROUP, group, [AclOperation.READ])

    def _grant(self, user: str, kind: ResourceType, name: str, operations: Any) -> None:
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap, **QUIET})
        rights = [
            AclBinding(
                kind,
                name,
                ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                operation,
                AclPermissionType.ALLOW,
            )
            for operation in operations
        ]
        for done in admin.create_acls(rights).values():
            done.result(30)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """A broker with every door that it can have."""
    folder = tmp_path_factory.mktemp("secure")
    authority = Authority(folder)
    certificate, key = authority.issue("broker")
    store = folder / "broker.pem"
    store.write_bytes(key.read_bytes() + certificate.read_bytes())
    identities = Identities(folder)
    # Kafka 4 fetches keys only from where its own JVM was told that it may.
    allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.files={identities.keys} "
    allowed += f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={identities.keys.as_uri()}"
    module, oauth = "org.apache.kafka.common.security", "listener.name.sasl_plaintext.oauthbearer"
    users = " ".join(f'user_{name}="{PASSWORD}"' for name in ("reader", "stranger"))
    plain = f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    properties = {
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,"
        "SASL_PLAINTEXT:SASL_PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.file),
        "listener.name.ssl.ssl.client.auth": "required",
        "listener.name.sasl_ssl.sasl.enabled.mechanisms": f"{PLAIN},{SCRAM}",
        "listener.name.sasl_plaintext.sasl.enabled.mechanisms": f"{SCRAM},{OAUTH}",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": plain,
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": scram,
        "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": scram,
        f"{oauth}.sasl.jaas.config": f"{module}.oauthbearer.OAuthBearerLoginModule required;",
        f"{oauth}.sasl.server.callback.handler.class": f"{module}.oauthbearer.OAuthBearerValidatorCallbackHandler",
        f"{oauth}.sasl.oauthbearer.jwks.endpoint.url": identities.keys.as_uri(),
        f"{oauth}.sasl.oauthbearer.expected.audience": AUDIENCE,
        # Whose token has expired is asked for another one, also in the middle of everything.
        f"{oauth}.connections.max.reauth.ms": "60000",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # The tests themselves, through the door without a lock.
        "super.users": "User:ANONYMOUS",
    }
    listeners = ("SSL", "SASL_SSL", "SASL_PLAINTEXT")
    with pytest.MonkeyPatch.context() as environment, closing(identities):
        environment.setenv("JAVA_TOOL_OPTIONS", allowed)
        with kafka_broker(folder / "broker", properties=properties, listeners=listeners) as broker:
            admin = AdminClient({"bootstrap.servers": broker.bootstrap, **QUIET})
            credential = UserScramCredentialUpsertion(
                "reader", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), PASSWORD.encode()
            )
            for done in admin.alter_user_scram_credentials([credential]).values():
                done.result(30)
            tls = {"ssl.ca.location": str(authority.file)}
            client = authority.issue("client")
            login = {"sasl.username": "reader", "sasl.password": PASSWORD}
            yield Secure(
                broker,
                authority,
                identities,
                {
                    "certificate": {
                        "security.protocol": "SSL",
                        "ssl.certificate.location": str(client[0]),
                        "ssl.key.location": str(client[1]),
                        **tls,
                    },
                    "password over TLS": {
                        "security.protocol": "SASL_SSL",
                        "sasl.mechanism": PLAIN,
                        **login,
                        **tls,
                    },
                    "SCRAM over TLS": {
                        "security.protocol": "SASL_SSL",
                        "sasl.mechanism": SCRAM,
                        **login,
                        **tls,
                    },
                    "SCRAM": {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": SCRAM, **login},
                    "token": {
                        "security.protocol": "SASL_PLAINTEXT",
                        "sasl.mechanism": OAUTH,
                        "sasl.oauthbearer.method": "oidc",
                        "sasl.oauthbearer.client.id": "reader",
                        "sasl.oauthbearer.client.secret": PASSWORD,
                        "sasl.oauthbearer.token.endpoint.url": identities.url,
                    },
                },
            )


@pytest.fixture(scope="module")
def filled(secure: Secure) -> Topic:
    """A topic that `reader`, and whoever has a certificate, may read."""
    topic = Topic(secure.broker)
    topic.write(100)
    for user in ("reader", "CN=client"):
        secure.allow(user, topic, AclOperation.READ)
        secure.allow_group(user, "training")
    return topic


WAYS = ["certificate", "password over TLS", "SCRAM over TLS", "SCRAM", "token"]


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_is_read_and_committed_through_every_door(secure: Secure, filled: Topic, way: str) -> None:
    with secure.loader(filled, way, secure.ways[way] | {"group.id": "training"}) as loader:
        seen = [name for batch in loader for name in filled.check(batch)]
        loader.checkpoint_saved(loader.state_dict())
        once(seen, filled.names)
        monitor = Consumer({"bootstrap.servers": secure.broker.bootstrap, "group.id": "training", **QUIET})
        parts = [TopicPartition(filled.name, number) for number in range(filled.partitions)]

        def committed() -> int:
            return sum(max(part.offset, 0) for part in monitor.committed(parts, timeout=10))

        wait_until(lambda: committed() == len(filled.written), 20, "the broker knows of the checkpoint")
        monitor.close()


def refused(secure: Secure, topic: Topic, way: str, **changes: str | None) -> str:
    """What is said when this user comes with something else."""
    properties = secure.ways[way] | changes
    with (
        at_most(REFUSED_SECONDS * SLACK, "a refusal"),
        pytest.raises(FuelrailError) as error,
        secure.loader(topic, way, {k: v for k, v in properties.items() if v is not None}) as loader,
    ):
        next(iter(loader))
    said = str(error.value)
    assert PASSWORD not in said and "wrong-donkey-8" not in said, said
    return said


@pytest.mark.parametrize("way", ["password over TLS", "SCRAM over TLS", "SCRAM"])
def test_a_wrong_password_is_refused_and_not_shown(secure: Secure, filled: Topic, way: str) -> None:
    said = refused(secure, filled, way, **{"sasl.password": "wrong-donkey-8"})
    assert "refuses this client" in said and "sasl.mechanism" in said, said


def test_a_wrong_secret_of_an_identity_provider_is_refused_and_not_shown(
    secure: Secure, filled: Topic
) -> None:
    said = refused(secure, filled, "token", **{"sasl.oauthbearer.client.secret": "wrong-donkey-8"})
    assert "refuses this client" in said and "invalid_client" in said, said


def test_a_stream_outlives_its_tokens(secure: Secure) -> None:
    topic = Topic(secure.broker)
    secure.allow("reader", topic, AclOperation.READ)
    source = {"properties": secure.ways["token"]}
    secure.identities.lifetime = lifetime = 6
    try:
        with Loader(secure.url(topic, "token"), **topic.options(source_options=source)) as loader:
            batches, seen = iter(loader), []
            given, began = secure.identities.given, time.monotonic()
            # Until the first tokens, and those that came after them, have expired.
            while time.monotonic() - began < 2 * lifetime or secure.identities.given < given + 4:
                assert time.monotonic() - began < 60, "no new token was fetched"
                topic.write(8)
                seen += topic.check(next(batches))
            once(seen, topic.names)
    finally:
        secure.identities.lifetime = 60


@pytest.mark.deadline(300)
def test_an_identity_provider_that_is_down_for_a_while_is_waited_for(secure: Secure) -> None:
    topic = Topic(secure.broker)
    secure.allow("reader", topic, AclOperation.READ)
    source = {"properties": secure.ways["token"]}
    identities = secure.identities
    identities.lifetime = 4
    try:
        with Loader(
            secure.url(topic, "token"), **topic.options(source_options=source, timeout=200)
        ) as loader:
            batches = iter(loader)
            topic.write(8)
            seen = topic.check(next(batches))
            identities.down, refused = True, identities.refused
            # Each connection asks again after ten seconds, and is thrown out when its token has expired.
            wait_until(
                lambda: identities.refused >= refused + 4, 60 * SLACK, "the provider was asked in vain"
            )
            topic.write(40)
            identities.down = False
            seen += topic.take(batches, set(topic.names) - set(seen))
            once(seen, topic.names)
    finally:
        identities.lifetime, identities.down = 60, False


def test_a_broker_with_another_authoritys_certificate_is_not_believed(
    secure: Secure, filled: Topic, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    said = refused(secure, filled, "SCRAM over TLS", **{"ssl.ca.location": str(other.file)})
    assert "certificate" in said and "ssl.ca.location" in said, said


def test_a_client_without_its_certificate_is_refused(secure: Secure, filled: Topic) -> None:
    missing = {"ssl.certificate.location": None, "ssl.key.location": None}
    said = refused(secure, filled, "certificate", **missing)
    assert "refuses this client" in said and "certificate" in said, said


def test_the_wrong_protocol_is_named_as_a_reason(secure: Secure, filled: Topic) -> None:
    said = refused(secure, filled, "SCRAM over TLS", **{"security.protocol": "PLAINTEXT"})
    assert "this port speaks TLS" in said and "security.protocol" in said, said


def test_a_file_that_is_not_there_is_named(secure: Secure, filled: Topic) -> None:
    said = refused(secure, filled, "SCRAM over TLS", **{"ssl.ca.location": "/nowhere/ca.pem"})
    assert "ssl.ca.location" in said and "/nowhere/ca.pem" in said, said


def test_rights_that_are_missing_are_named(secure: Secure) -> None:
    topic = Topic(secure.broker)
    topic.write(10)
    said = refused(secure, topic, "SCRAM")
    assert topic.name in said and "READ" in said and "DESCRIBE" in said, said
    # It may be looked at, but not read.
    secure.allow("reader", topic, AclOperation.DESCRIBE)
    said = refused(secure, topic, "SCRAM")
    assert topic.name in said and "READ" in said and "grant " in said, said
    secure.allow("reader", topic, AclOperation.READ)
    with secure.loader(topic, "SCRAM") as loader:
        once([name for batch in loader for name in topic.check(batch)], topic.names)


def test_passwords_in_a_file_serve_every_command(secure: Secure, images: Path, tmp_path: Path) -> None:
    topic = Topic(secure.broker)
    secure.allow("reader", topic, AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE)
    way = "SCRAM over TLS"
    file = tmp_path / "client.properties"
    lines = ["# as for Kafka's own clients", *(f"{name}={value}" for name, value in secure.ways[way].items())]
    file.write_text("\n".join(lines))
    done = fuelrail("produce", images, secure.url(topic, way), "--property", f"@{file}")
    assert done.returncode == 0, done.stderr
    done = fuelrail(
        "bench",
        secure.url(topic, way),
        "--source-option",
        f"properties=@{file}",
        "--source-option=end=end",
        "--batch-size",
        "8",
        "--seconds",
        "1",
    )
    assert done.returncode == 0 and "records received" in done.stdout, done.stdout + done.stderr
    file.write_text("\n".join([*lines, PASSWORD]))
    for command in (
        ["produce", images, secure.url(topic, way), "--property", f"@{file}"],
        ["bench", secure.url(topic, way), "--source-option", f"properties=@{file}"],
    ):
        done = fuelrail(*command)
        assert done.returncode == 1 and f"{file}: line" in done.stderr, done.stderr
        assert "NAME=VALUE" in done.stderr and PASSWORD not in done.stderr


def test_training_reads_properties_from_a_file_and_names_a_wrong_line_without_it(tmp_path: Path) -> None:
    from fuelrail.train.options import option

    file = tmp_path / "client.properties"
    file.write_text(f"# ours\nsecurity.protocol = SASL_SSL\n\nsasl.password={PASSWORD}==\n")
    read = {"security.protocol": "SASL_SSL", "sasl.password": f"{PASSWORD}=="}
    assert option(f"properties=@{file}") == ("properties", read)
    for text, why in (
        (f"a=1\n{PASSWORD}", "line 2 is not"),
        (f"a={PASSWORD}\na=2", "line 2: a is set twice"),
    ):
        file.write_text(text)
        with pytest.raises(argparse.ArgumentTypeError, match=why) as error:
            option(f"properties=@{file}")
        assert PASSWORD not in str(error.value)


def test_a_source_does_not_show_its_properties() -> None:
    source = Source("kafka://broker:9092/images", properties={"sasl.password": PASSWORD}, window_records=64)
    assert repr(source) == (
        "Source('kafka://broker:9092/images', properties={'sasl.password': '…'}, window_records=64)"
    )


def test_a_users_own_properties_are_never_in_a_token(secure: Secure, filled: Topic) -> None:
    with secure.loader(filled, "SCRAM") as loader:
        next(iter(loader))
        token = json.dumps(loader.state_dict())
    assert PASSWORD not in token and "reader" not in token
    # Another user, through another door of the same cluster, goes on from it.
    with secure.loader(filled, "certificate") as loader:
        loader.load_state_dict(json.loads(token))
        assert sum(len(batch["label"]) for batch in loader) == len(filled.written) - 8
