"""Onion services on scripted relays: what relays do for them, and a scripted other half, service or client.

Plain Python over hashlib and `cryptography`, from rend-spec-v3, sharing nothing with torkit but the numbers
of messages.

    network = OnionNetwork(relays)                        each relay stands as whatever it is asked for

For a client under test, a service:

    service = OnionService(network, relays[3:6], far)     its introduction points; `far` gets the streams
    service.publish()                                     service.address can be looked up and met
    far.on_begin = lambda stream: stream.send(RelayCommand.CONNECTED)

For a service under test, a client:

    client = OnionClient(network)
    found = client.descriptor(address, TimePeriod.at(valid_after))
    cookie = client.introduce(found.points[0], found.subcredential, relays[2])
    client.met[cookie].begin(80, b"sent at once")         once the service has come

Both under test meet by way of the relays, which join their circuits. To break a rule, name a step:

    relays[2].sending(RelayCommand.RENDEZVOUS2).corrupt()
    relays[3].sending(RelayCommand.INTRODUCE_ACK).drop()
    relays[0].answering("/tor/hs/3/").cut(1000)           the descriptor ends early

or have somebody lie:

    service.on_introduce = lambda one: one.acknowledge(1)                     nobody of this name is here
    service.on_introduce = lambda one: service.meet(one, bytes(64))           somebody else comes
    service.publish(text=service.maker.outer("desc-auth-type none\\n"))
    service.points[0] = service.points[0]._replace(onion_key=bytes(32)); service.publish()
    network.on_upload = lambda relay, text: http_response(b"", status="503 Busy")
    network.on_establish_intro = lambda end: end.circuit.destroy()
"""

from torkit.testing.onion.client import FarClient, OnionClient
from torkit.testing.onion.descriptor import (
    DescriptorMaker,
    IntroductionPoint,
    OnionDescriptor,
    read_descriptor,
)
from torkit.testing.onion.keys import OnionKey, TimePeriod
from torkit.testing.onion.network import End, OnionNetwork
from torkit.testing.onion.service import Introduction, OnionService

__all__ = [
    "DescriptorMaker",
    "End",
    "FarClient",
    "Introduction",
    "IntroductionPoint",
    "OnionClient",
    "OnionDescriptor",
    "OnionKey",
    "OnionNetwork",
    "OnionService",
    "TimePeriod",
    "read_descriptor",
]
