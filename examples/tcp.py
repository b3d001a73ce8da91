"""TCP's connection states as RFC 9293 draws them (figure 5): a table of signals. Two ends talk to one another."""

from dataclasses import dataclass, field

from statemachine import End, IllegalMove, Machine, Run, Signal, Wait


@dataclass
class Connection:
    sent: list[str] = field(default_factory=list)  # segments, the oldest first


def new_context() -> Connection:
    return Connection()


@dataclass(frozen=True, slots=True)
class Event(Signal[Connection, None]):
    """A call of the user, a segment that arrived, or a timeout; and the segment that is sent in return."""

    sends: str = ""

    def apply(self, connection: Connection, payload: None) -> None:
        if self.sends:
            connection.sent.append(self.sends)


def on(event: str, source: Wait, target: Wait | End, sends: str = "") -> Event:
    """One row of the table."""
    return Event(event, to=target, sources=(source,), sends=sends)


closed, listen, syn_sent, syn_received = Wait("CLOSED"), Wait("LISTEN"), Wait("SYN-SENT"), Wait("SYN-RECEIVED")
established, close_wait, last_ack = Wait("ESTABLISHED"), Wait("CLOSE-WAIT"), Wait("LAST-ACK")
fin_wait_1, fin_wait_2, closing, time_wait = Wait("FIN-WAIT-1"), Wait("FIN-WAIT-2"), Wait("CLOSING"), Wait("TIME-WAIT")
deleted = End("DELETED")  # the figure draws CLOSED twice: before there is a connection, and after it

machine = Machine(
    "tcp",
    start=closed,
    transitions=[],  # no state goes on by itself: each waits for a call, a segment or a timeout
    signals=[
        on("passive_open", closed, listen),
        on("active_open", closed, syn_sent, sends="SYN"),
        on("send", listen, syn_sent, sends="SYN"),
        on("SYN", listen, syn_received, sends="SYN,ACK"),
        on("SYN", syn_sent, syn_received, sends="SYN,ACK"),  # both open at once
        on("SYN,ACK", syn_sent, established, sends="ACK_of_SYN"),
        on("SYN,ACK", syn_received, established),  # as both did: it acknowledges our SYN
        on("ACK_of_SYN", syn_received, established),
        on("RST", syn_received, listen),  # if it came from LISTEN, says note 1
        on("close", listen, deleted),
        on("close", syn_sent, deleted),
        on("close", syn_received, fin_wait_1, sends="FIN"),
        on("close", established, fin_wait_1, sends="FIN"),
        on("close", close_wait, last_ack, sends="FIN"),
        on("FIN", established, close_wait, sends="ACK_of_FIN"),
        on("FIN", fin_wait_1, closing, sends="ACK_of_FIN"),  # both close at once
        on("FIN", fin_wait_2, time_wait, sends="ACK_of_FIN"),
        on("ACK_of_FIN", fin_wait_1, fin_wait_2),
        on("ACK_of_FIN", closing, time_wait),
        on("ACK_of_FIN", last_ack, deleted),
        on("2MSL_timeout", time_wait, deleted),
    ],
)


@dataclass
class Wire:
    """Carries what each end sends to the other, in order."""

    ends: tuple[Run[Connection], Run[Connection]]
    carried: list[int] = field(default_factory=lambda: [0, 0])

    def carry(self, number: int) -> bool:
        """Carry the next segment of one end, if there is one."""
        here, there = self.ends[number], self.ends[1 - number]
        if self.carried[number] == len(here.context.sent):
            return False
        segment = here.context.sent[self.carried[number]]
        self.carried[number] += 1
        there.signal(segment)
        print(f"  {here.id} -> {there.id}: {segment:<10} | {here.id} {here.phase.name}, {there.id} {there.phase.name}")
        return True

    def settle(self) -> None:
        while self.carry(0) or self.carry(1):
            pass


def connected(*calls: str) -> tuple[Run[Connection], Run[Connection], Wire]:
    """Two ends, each opened by one of the calls."""
    client, server = (Run(machine, Connection(), run_id=name) for name in ("client", "server"))
    for end, call in zip((client, server), calls, strict=True):
        end.start()
        end.signal(call)
    wire = Wire((client, server))
    wire.settle()
    return client, server, wire


def main() -> None:
    for calls in (("active_open", "passive_open"), ("active_open", "active_open")):
        print("client and server:", " and ".join(calls))
        client, server, wire = connected(*calls)
    print("close, at both ends, one after the other")
    client.signal("close")
    wire.settle()
    try:
        client.signal("close")
    except IllegalMove as refused:
        print(" ", refused)
    server.signal("close")
    wire.settle()
    client.signal("2MSL_timeout")
    print(client, server, sep="\n")


if __name__ == "__main__":
    main()
