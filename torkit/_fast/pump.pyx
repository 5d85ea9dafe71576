"""Moves bytes between relays' connections and the proxy's clients, without Python and without a task.

    relay's socket -> TLS -> cells -> streams -> the clients' sockets (Stream.sink)
    client's socket -> its stream -> cells -> TLS -> relay's socket

Everything but bulk data is for Python: `run` returns it as (owner, what) pairs. Its driver (net/link/pump.py) calls
`run` whenever the program would sleep, so cells that were sealed meanwhile go out in one piece.

An exception while one source is served ends that source: it is watched no more, and its owner gets an
InternalError. `run` itself raises only where the exception belongs to no source; after MemoryError it may be called
again, and nothing is lost.
"""

cimport cython
from libc.errno cimport EAGAIN, EINTR, EPERM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.time cimport CLOCK_MONOTONIC, timespec
from posix.unistd cimport close, read

from torkit._fast.cells cimport monotonic
from torkit._fast.channel cimport Channel
from torkit._fast.events cimport ChannelFailed, Flushed, Writable
from torkit._fast.factory cimport make
from torkit._fast.memory cimport excess, rest
from torkit._fast.sources cimport Link, Local, Source, find_greatest, release_spare, write_off
from torkit._fast.stream cimport Stream
from torkit._fast.tls cimport Tls
from torkit._fast.tunnel cimport Tunnel

from torkit._fast.sources import LocalEvent
from torkit.errors import ChannelClosed, ChannelError, InternalError, UsageError

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN
    uint32_t EPOLLOUT
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int descriptor, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int count, int milliseconds)

cdef extern from "<sys/timerfd.h>" nogil:
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int TFD_TIMER_ABSTIME
    int TFD_CLOEXEC
    int TFD_NONBLOCK
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int timer, int flags, const itimerspec* new, itimerspec* old)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    int ppoll(pollfd* descriptors, unsigned long count, const timespec* timeout, const void* signals)


cdef uint32_t TIMER = 0xFFFFFFFF  # in epoll's data, in place of a slot

cdef str OVER_LIMIT = "the connection held the most memory when the limit was passed"


@cython.final
cdef class Pump:
    """Watches sockets that others own and close. Raises OSError where the system refuses to watch one."""

    def __cinit__(self):
        cdef epoll_event event
        self.timer = -1
        self.descriptor = epoll_create1(EPOLL_CLOEXEC)
        self.buffer = <uint8_t*>malloc(BUFFER_LEN)
        if self.descriptor < 0 or self.buffer == NULL:
            raise MemoryError("no epoll instance")
        self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        event.events = EPOLLIN
        event.data.u32 = TIMER
        if self.timer < 0 or epoll_ctl(self.descriptor, EPOLL_CTL_ADD, self.timer, &event) != 0:
            raise MemoryError("no timer")
        self.sources = []
        self.free = []
        self.links = []
        self.found = []
        self.due = []
        self.paced = []

    def __dealloc__(self):
        if self.descriptor >= 0:
            close(self.descriptor)
        if self.timer >= 0:
            close(self.timer)
        free(self.buffer)

    # --- the sources ------------------------------------------------------------------------------

    def add_link(self, Tls tls not None, Channel channel not None, owner):
        """Watch a relay's connection, past its handshake. Its owner gets lists of events."""
        make()
        cdef Link link = Link.__new__(Link)
        link.owner = owner
        link.tls = tls
        link.channel = channel
        link.has_more = True  # the last flight of a handshake may have brought data with it
        self.add(link, tls.incoming.descriptor, EPOLLIN)
        self.links.append(link)
        return link

    def add_local(self, int descriptor, owner, bint is_pipe=False):
        """Watch a non-blocking socket of this machine, which Python reads until `Local.feed`.

        Its owner gets LocalEvents. Where the core reads it, it is not watched for reading after ENDED and FAILED.

        It may be a pipe. It may be a file, which is always ready and so cannot be watched: the core reads and
        writes it, and tells no more of it. With `is_pipe` it is the reading end of a pipe, or of a pair of
        sockets: a writer that closes the other end breaks nothing, and ends the reading.
        """
        make()
        cdef Local local = Local.__new__(Local)
        local.owner = owner
        local.due = self.due
        local.is_pipe = is_pipe
        self.add(local, descriptor, EPOLLIN)
        return local

    def watch_reading(self, Local local not None, bint is_wanted):
        """Watch for bytes to read, or no longer. A socket that breaks is always reported."""
        if local.descriptor >= 0:
            self.watch_for(local, local.interest | EPOLLIN if is_wanted else local.interest & ~EPOLLIN)

    def watch_writing(self, Local local not None, bint is_wanted):
        """Watch for room to write, or no longer."""
        if local.descriptor >= 0:
            self.watch_for(local, local.interest | EPOLLOUT if is_wanted else local.interest & ~EPOLLOUT)

    def remove(self, Source source not None):
        """Stop watching a source, once, before its socket is closed. Raises UsageError for another pump's source."""
        cdef epoll_event ignored
        if source.descriptor < 0:
            return
        if source.slot >= len(self.sources) or self.sources[source.slot] is not source:
            raise UsageError("the source is another pump's")
        epoll_ctl(self.descriptor, EPOLL_CTL_DEL, source.descriptor, &ignored)
        source.descriptor, source.owner = -1, None  # else both would wait for a collection of garbage
        self.sources[source.slot] = None
        try:
            self.free.append(source.slot)
        except MemoryError:
            pass  # the slot stays empty
        if type(source) is Link:
            self.links.remove(source)
        else:
            (<Local>source).feed(None)
            (<Local>source).due = None

    def owners(self):
        """Returns the owner of each source that is watched."""
        return [(<Source>source).owner for source in self.sources if source is not None]

    def forget(self, owner):
        """Stop watching all sources of `owner`."""
        for source in list(self.sources):
            if source is not None and (<Source>source).owner is owner:
                self.remove(source)

    cdef int add(self, Source source, int descriptor, uint32_t interest) except -1:
        cdef epoll_event event
        source.slot = self.free.pop() if self.free else len(self.sources)
        event.events = interest
        event.data.u32 = <uint32_t>source.slot
        if epoll_ctl(self.descriptor, EPOLL_CTL_ADD, descriptor, &event) == 0:
            pass
        elif errno == EPERM and type(source) is Local:
            (<Local>source).is_file = True
        else:
            if source.slot < len(self.sources):
                self.free.append(source.slot)
            raise OSError(errno, "the socket cannot be watched")
        source.descriptor = descriptor
        source.interest = interest
        if source.slot == len(self.sources):
            self.sources.append(source)
        else:
            self.sources[source.slot] = source
        return 0

    cdef int watch_for(self, Source source, uint32_t interest) except -1:
        cdef epoll_event event
        cdef int operation = EPOLL_CTL_MOD
        if interest != source.interest:
            if type(source) is Local:
                if (<Local>source).is_file:
                    return 0
                if (<Local>source).is_pipe:
                    # epoll would report the writer's close, asked for or not, as long as there are bytes to read.
                    if interest == 0:
                        operation = EPOLL_CTL_DEL
                    elif source.interest == 0:
                        operation = EPOLL_CTL_ADD
            event.events = interest
            event.data.u32 = <uint32_t>source.slot
            if epoll_ctl(self.descriptor, operation, source.descriptor, &event) != 0:
                raise OSError(errno, "the socket cannot be watched")
            source.interest = interest
        return 0

    # --- moving -----------------------------------------------------------------------------------

    def run(self, int other, double seconds, double linger, double turn):
        """Move the bytes that can be moved. Returns what Python has to handle, as (owner, what) pairs.

        `what` is a list of Events for the owner of a link, a LocalEvent for the owner of a local, or an
        InternalError where an exception has ended the owner's source.
        Then, if a byte has moved in the last `linger` seconds, wait for more, `seconds` at most or until the
        descriptor `other` is readable; not at all where `other` is -1. However much there is to move, `other` has
        its turn after `turn` seconds, or twice that where it may only be readable because this pump is.
        """
        cdef list found = self.found
        cdef double now = monotonic()
        cdef double give_up_at = now + seconds
        cdef double turn_ends_at = now + turn
        cdef double until
        cdef pollfd[2] polled
        cdef timespec timeout
        cdef bint is_others_turn
        cdef int ready
        self.feed(found)  # Python has moved windows since, and opened some
        while True:
            self.round(found)
            if found or seconds <= 0:
                return self.take_found()
            now = monotonic()
            if self.links_behind():
                if now < turn_ends_at:
                    continue
                return self.take_found()
            until = min(give_up_at, self.moved_at + linger)
            if until <= now:
                rest()
            if other < 0 or until <= now:
                return self.take_found()
            is_others_turn = now >= turn_ends_at
            if is_others_turn:
                until = now
            polled[0].fd = self.descriptor
            polled[1].fd = other
            polled[0].events = polled[1].events = POLLIN
            polled[0].revents = polled[1].revents = 0
            timeout.tv_sec = <long>(until - now)
            timeout.tv_nsec = <long>(1e9 * (until - now - timeout.tv_sec))
            with nogil:
                ready = ppoll(polled, 2, &timeout, NULL)
            if is_others_turn:
                # It may be trio's epoll, which watches ours: where both are ready the next round tells, once.
                if polled[1].revents and (not polled[0].revents or now >= turn_ends_at + turn):
                    return self.take_found()
                if not polled[1].revents:
                    turn_ends_at = now + turn
            # A signal is for Python to see; a timeout and the other descriptor are for the caller. But for the
            # time of its turn, what moves bytes comes first.
            elif ready <= 0 or not polled[0].revents:
                return self.take_found()

    cdef list take_found(self):
        """Returns what Python has to handle. It is kept until here: a call that raises MemoryError loses nothing."""
        cdef list found = self.found
        cdef list fresh = []
        if self.has_untold:
            self.tell_failed(found)
        self.found = fresh
        return found

    cdef int round(self, list found) except -1:
        """Look at each socket that is ready, once."""
        cdef epoll_event[MAX_READY] events
        cdef Source source
        cdef Link link
        cdef int i
        cdef int count = epoll_wait(self.descriptor, events, MAX_READY, 0)
        if count < 0 and errno != EINTR:
            raise OSError(errno, "the system does not watch sockets any more")
        for i in range(count):
            if events[i].data.u32 == TIMER:
                self.unpace(found)
                continue
            source = <Source>self.sources[events[i].data.u32]
            if source is None or source.has_failed:
                continue
            if type(source) is Local:
                try:
                    self.upload(<Local>source, events[i].events, found)
                except Exception as error:
                    self.fail_local(<Local>source, error, found)
                continue
            link = <Link>source
            if events[i].events & EPOLLOUT:
                link.tls.is_blocked = False
            if events[i].events & ~EPOLLOUT:
                link.has_more = True
            if events[i].events & ~(EPOLLIN | EPOLLOUT):
                link.answers = 0  # the relay is gone: read what is left, for epoll would tell again and again
        self.receive_all(found)
        if excess() > 0:
            self.relieve(found)
        if not found:
            self.feed(found)
        return self.send(found)

    cdef int relieve(self, list found) except -1:
        """End the greatest holders of memory until the limit is kept: more waits than it allows."""
        release_spare(self.links)
        while excess() > 0 and self.end_greatest(found):
            pass
        return 0

    cdef bint end_greatest(self, list found) except -1:
        """End the circuit or the link that holds most. Returns False where nobody holds anything."""
        greatest = find_greatest(self.links, self.sources)
        if greatest is None:
            return False
        if type(greatest) is Link:
            (<Link>greatest).channel.outbox.clear()
            (<Link>greatest).tls.forget()
            self.fail_link(<Link>greatest, ChannelClosed(OVER_LIMIT), found)
        else:
            write_off(<Tunnel>greatest, self.sources)
        self.ended_for_memory += 1
        return True

    cdef int links_behind(self):
        """Returns how many relays' connections hold bytes not taken yet, which epoll may not know."""
        cdef Link link
        cdef int count = 0
        for link in self.links:
            count += link.has_more and not link.has_failed
        return count

    cdef int receive_all(self, list found) except -1:
        """Read the links that hold bytes, in turns, as far as ROUND_READS go."""
        cdef Link link
        cdef int left = ROUND_READS
        cdef int reads
        cdef Py_ssize_t at
        cdef int behind = self.links_behind()
        if behind == 0:
            return 0
        for link in list(self.links):
            if not link.has_more or link.has_failed:
                continue
            if left == 0:  # a link that was not read is the first of the next round
                at = self.links.index(link)
                self.links = self.links[at:] + self.links[:at]
                return 0
            reads = min(left, max(1, MAX_READS // behind))
            left -= reads
            try:
                self.receive(link, reads, found)
            except Exception as error:
                self.fail_link(link, error, found)
        return 0

    cdef int receive(self, Link link, int reads, list found) except -1:
        """Carry a relay's bytes, up to the streams' sinks."""
        cdef Py_ssize_t count, sealed
        cdef int i
        cdef list events
        for i in range(reads):
            if link.answers > ANSWERS_MAX:
                link.has_more = False
                return self.watch_for(link, EPOLLOUT)
            count = link.tls.receive_into(self.buffer, BUFFER_LEN)
            if count == 0 and link.tls.has_ended:
                raise ChannelClosed("the relay closed the connection")
            link.has_more = link.tls.has_more or link.tls.has_ended or link.tls.failure is not None
            if count:
                self.moved_at = monotonic()
                sealed = link.channel.outbox.length
                events = link.channel.receive_read(self.buffer, count)
                link.answers += link.channel.outbox.length - sealed
                if events:
                    events = self.hand_over(events)
                if events:
                    found.append((link.owner, events))
                if link.channel.has_failed:
                    self.remove(link)
                    return 0
            if not link.has_more:
                return 0
        return 0

    cdef int fail_link(self, Link link, error, list found) except -1:
        """End a relay's connection for an exception while it was read or sent to."""
        link.has_failed = True
        try:
            if isinstance(error, (ChannelClosed, ChannelError)):
                found.append((link.owner, [ChannelFailed(error)]))
            else:
                found.append((link.owner, InternalError.ending("the connection to a relay", error)))
        except MemoryError:
            self.has_untold = True
            return 0
        self.remove(link)
        return 0

    cdef int fail_local(self, Local local, error, list found) except -1:
        """End a client's socket for an exception while it was read."""
        local.has_failed = True
        try:
            found.append((local.owner, InternalError.ending("a client's connection", error)))
        except MemoryError:
            self.has_untold = True
            return 0
        self.remove(local)
        return 0

    cdef int tell_failed(self, list found) except -1:
        """Tell the owners of failed sources for which there was no memory then."""
        for source in self.sources:
            if source is not None and (<Source>source).has_failed:
                found.append(((<Source>source).owner, InternalError.ending("a connection", MemoryError())))
                self.remove(source)
        self.has_untold = False
        return 0

    cdef int pace(self, Local local) except -1:
        """Have an upload go on once the peer's rate allows more, where the rate holds it."""
        cdef itimerspec timer
        cdef double at = local.stream.next_feed_at
        if not local.stream.waits_for_rate:
            return 0
        if not local.is_paced:
            local.is_paced = True
            self.paced.append(local)
        if self.timer_at and self.timer_at <= at:
            return 0
        timer.it_interval.tv_sec = timer.it_interval.tv_nsec = 0
        timer.it_value.tv_sec = <long>at
        timer.it_value.tv_nsec = <long>(1e9 * (at - timer.it_value.tv_sec))
        if timerfd_settime(self.timer, TFD_TIMER_ABSTIME, &timer, NULL) != 0:
            raise OSError(errno, "the timer cannot be set")
        self.timer_at = at
        return 0

    cdef int unpace(self, list found) except -1:
        """Go on after the timer: uploads that may go on are due; for the others it is set anew."""
        cdef uint64_t expirations
        cdef Local local
        cdef list paced = self.paced
        self.paced = []
        read(self.timer, &expirations, sizeof(expirations))
        self.timer_at = 0
        for local in paced:
            local.is_paced = False
            if local.stream is None or local.descriptor < 0:
                continue
            try:
                if local.stream.next_feed_at <= monotonic():
                    local.resume()
                else:
                    self.pace(local)
            except Exception as error:
                self.fail_local(local, error, found)
        return 0

    cdef list hand_over(self, list events):
        """Have uploads go on whose windows have opened. Returns the other events, for Python."""
        cdef Stream stream
        cdef Local local
        cdef list others = []
        for event in events:
            if type(event) is Writable:
                stream = <Stream>(<Writable>event).stream
                if stream.feeder is not None:
                    local = <Local>stream.feeder
                    if not local.is_due:
                        local.is_due = True
                        self.due.append(local)
                    continue
            others.append(event)
        return others

    cdef int upload(self, Local local, uint32_t flags, list found) except -1:
        """Carry a client's bytes, up to sealed cells."""
        if not flags & local.interest and not local.is_pipe:
            # Nothing that was asked for: it broke. epoll would say so again and again.
            found.append((local.owner, LocalEvent.BROKEN))
            self.remove(local)
            return 0
        if flags & EPOLLOUT:
            found.append((local.owner, LocalEvent.WRITABLE))
        if not flags & ~EPOLLOUT:
            return 0
        if local.stream is None:
            found.append((local.owner, LocalEvent.READABLE))
            return 0
        if local.unsent_len:
            return 0
        return self.read_from(local, found)

    cdef int read_from(self, Local local, list found) except -1:
        """Read once, for the stream that the core feeds."""
        cdef Py_ssize_t count, sealed
        cdef int number
        count = read(local.descriptor, self.buffer, CLIENT_READ_LEN)
        if count > 0:
            self.moved_at = monotonic()
            sealed = local.stream.feed_from(self.buffer, count)
            if sealed < count:  # until its windows open, or the peer's rate allows more
                local.keep(self.buffer + sealed, count - sealed)
                self.watch_for(local, local.interest & ~EPOLLIN)
                self.pace(local)
            return 0
        number = errno
        if count < 0 and (number == EINTR or (number == EAGAIN and not local.is_file)):
            return 0
        local.has_ended = True
        self.watch_for(local, local.interest & ~EPOLLIN)
        if count < 0:
            local.failure = OSError(number, "the client's connection broke")
        found.append((local.owner, LocalEvent.ENDED if count == 0 else LocalEvent.FAILED))
        return 0

    cdef int feed(self, list found) except -1:
        """Go on with uploads whose windows have opened."""
        cdef Local local
        cdef list due
        if not self.due:
            return 0
        due = list(self.due)
        self.due.clear()  # the list itself is the locals', too
        for local in due:
            local.is_due = False
            if local.stream is None or local.descriptor < 0 or local.has_failed:
                continue
            try:
                self.go_on(local, found)
            except Exception as error:
                self.fail_local(local, error, found)
        return 0

    cdef int go_on(self, Local local, list found) except -1:
        """Go on with one upload."""
        if local.unsent_len:
            local.seal()
        if local.unsent_len:
            self.watch_for(local, local.interest & ~EPOLLIN)
            self.pace(local)
        elif not local.has_ended:
            self.watch_for(local, local.interest | EPOLLIN)
        while local.is_file and not local.unsent_len and not local.has_ended:
            self.read_from(local, found)
        return 0

    cdef int send(self, list found) except -1:
        """Send everything that has been sealed, each relay's in one piece."""
        cdef Link link
        cdef list events
        for link in list(self.links):
            if link.has_failed:
                continue
            if link.channel.outbox.broken:
                events = []
                found.append((link.owner, events))  # first: an owner that has been told is not told again
                link.channel.tell_broken(events)
            if not link.tls.is_blocked:
                try:
                    self.send_link(link, found)
                except Exception as error:
                    self.fail_link(link, error, found)
        return 0

    cdef bint send_link(self, Link link, list found) except -1:
        cdef bint is_sent
        cdef Py_ssize_t length = link.channel.outbox.length
        if length == 0 and not link.tls.waiting() and not link.tell_when_sent:
            return True
        if length:
            link.channel.last_active = monotonic()
        is_sent = link.tls.send_from(link.channel.outbox.cells, length)
        link.channel.outbox.clear()
        link.channel.outbox.is_congested = not is_sent
        if is_sent and link.answers:
            link.has_more = link.has_more or link.answers > ANSWERS_MAX
            link.answers = 0
        if link.answers <= ANSWERS_MAX:
            self.watch_for(link, EPOLLIN if is_sent else EPOLLIN | EPOLLOUT)
        if is_sent and link.tell_when_sent:
            link.tell_when_sent = False
            found.append((link.owner, [Flushed()]))
        return is_sent

