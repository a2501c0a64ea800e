//! One netlink socket: requests that are acknowledged, single answers, and dumps.
//!
//! Answers are matched by sequence number, so what an exchange that broke off left behind in the socket is passed
//! over by the next.

use std::ops::ControlFlow;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket as RawSocket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce};

use super::error::{Failure, Refused};

/// Bytes read at once. The kernel never sends more than 32 KiB in one datagram (`netlink_recvmsg`).
const READ: usize = 64 * 1024;

/// How often a dump is begun again when the kernel says that it changed meanwhile.
const DUMP_ATTEMPTS: usize = 8;

/// The kernel's address.
const KERNEL: (u32, u32) = (0, 0);

/// `NLMSGERR_ATTR_MSG`: the extended acknowledgement's text.
const ATTRIBUTE_MESSAGE: u16 = 1;

/// Bytes of the request's header that precede the attributes of a capped error message.
const ECHOED_HEADER: usize = 16;

/// `NLMSG_ALIGNTO`.
const ALIGNMENT: usize = 4;

/// A blocking netlink socket with its sequence counter.
pub(super) struct Socket {
    raw: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One request of a batch: the message and its flags beyond `NLM_F_REQUEST | NLM_F_ACK`.
pub(super) struct Request<T> {
    pub(super) message: T,
    pub(super) flags: u16,
}

enum Reply<T> {
    Message(T),
    Acknowledged,
    Done,
    Refused(Refused),
}

impl Socket {
    pub(super) fn open(protocol: isize) -> Result<Self, Failure> {
        let mut raw = RawSocket::new(protocol)?;
        raw.bind_auto()?;
        raw.set_ext_ack(true)?;
        raw.set_cap_ack(true)?;
        raw.set_netlink_get_strict_chk(true)?;
        Ok(Self { raw, sequence: 0, buffer: vec![0; READ] })
    }

    /// Makes room for one datagram of so many bytes and for the answers to all of its messages. Without CAP_NET_ADMIN on the
    /// host itself, as in a container, it stays at what is usual, some 200 KiB.
    pub(super) fn make_room(&self, bytes: usize) {
        setsockopt(&self.raw, SndBufForce, &bytes).ok();
        setsockopt(&self.raw, RcvBufForce, &bytes).ok();
    }

    /// Sends the requests as one datagram, and returns the kernel's answer to each. One that is refused does not
    /// keep the kernel from the next.
    pub(super) fn execute<T>(
        &mut self,
        requests: Vec<Request<T>>,
    ) -> Result<Vec<Result<(), Refused>>, Failure>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
        NetlinkPayload<T>: From<T>,
    {
        let expected = requests.len();
        let first = self.send(requests.into_iter().map(|r| (r.message, r.flags | NLM_F_ACK)))?;
        let mut answers = Vec::with_capacity(expected);
        self.receive::<T>(first, |reply, _| {
            match reply {
                Reply::Acknowledged => answers.push(Ok(())),
                Reply::Refused(refused) => answers.push(Err(refused)),
                Reply::Message(_) | Reply::Done => {}
            }
            if answers.len() < expected { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(answers)
    }

    /// Sends one request that must be acknowledged.
    pub(super) fn execute_one<T>(&mut self, message: T, flags: u16) -> Result<(), Failure>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
        NetlinkPayload<T>: From<T>,
    {
        let answers = self.execute(vec![Request { message, flags }])?;
        answers.into_iter().collect::<Result<(), Refused>>().map_err(Failure::Refused)
    }

    /// Sends the requests as one transaction of nf_tables, which the kernel carries out as a whole or not at all. The marks
    /// around it are not acknowledged by every kernel, and so by none.
    pub(super) fn execute_batch<T>(
        &mut self,
        begin: T,
        requests: Vec<Request<T>>,
        end: T,
    ) -> Result<(), Failure>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
        NetlinkPayload<T>: From<T>,
    {
        let mut missing = requests.len();
        let inner = requests.into_iter().map(|request| (request.message, request.flags | NLM_F_ACK));
        let first = self.send([(begin, 0)].into_iter().chain(inner).chain([(end, 0)]))?;
        let mut refusal = None;
        self.receive::<T>(first, |reply, _| {
            match reply {
                Reply::Acknowledged => missing -= 1,
                Reply::Refused(refused) => refusal = Some(refused),
                Reply::Message(_) | Reply::Done => {}
            }
            if refusal.is_none() && missing > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        refusal.map_or(Ok(()), |refused| Err(Failure::Refused(refused)))
    }

    /// Asks for one thing.
    pub(super) fn get<T>(&mut self, message: T) -> Result<T, Failure>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
        NetlinkPayload<T>: From<T>,
    {
        let first = self.send([(message, 0)])?;
        let mut answer = Err(Failure::Malformed("no answer".into()));
        self.receive::<T>(first, |reply, _| {
            answer = match reply {
                Reply::Message(message) => Ok(message),
                Reply::Refused(refused) => Err(Failure::Refused(refused)),
                Reply::Acknowledged | Reply::Done => return ControlFlow::Break(()),
            };
            ControlFlow::Break(())
        })?;
        answer
    }

    /// Asks for all of a kind, until one answer is whole.
    pub(super) fn dump<T>(&mut self, message: &T) -> Result<Vec<T>, Failure>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Clone,
        NetlinkPayload<T>: From<T>,
    {
        for _ in 0..DUMP_ATTEMPTS {
            let first = self.send([(message.clone(), NLM_F_DUMP)])?;
            let mut found = Vec::new();
            let mut failure = None;
            let mut interrupted = false;
            self.receive::<T>(first, |reply, flags| {
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match reply {
                    Reply::Message(message) => {
                        found.push(message);
                        return ControlFlow::Continue(());
                    }
                    Reply::Refused(refused) => failure = Some(Failure::Refused(refused)),
                    Reply::Acknowledged | Reply::Done => {}
                }
                ControlFlow::Break(())
            })?;
            match failure {
                Some(failure) => return Err(failure),
                None if interrupted => {}
                None => return Ok(found),
            }
        }
        Err(Failure::Unsteady)
    }

    /// Sends the messages as one datagram, and returns the first one's sequence number.
    fn send<T>(&mut self, messages: impl IntoIterator<Item = (T, u16)>) -> Result<u32, Failure>
    where
        T: NetlinkSerializable,
        NetlinkPayload<T>: From<T>,
    {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for (message, flags) in messages {
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::from(message);
            message.header.flags = NLM_F_REQUEST | flags;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len().next_multiple_of(ALIGNMENT), 0);
            message.serialize(&mut datagram[start..]);
        }
        self.raw.send_to(&datagram, &SocketAddr::new(KERNEL.0, KERNEL.1), 0)?;
        Ok(first)
    }

    /// Hands on the replies to everything sent since `first`, until `handle` has enough.
    fn receive<T>(
        &mut self,
        first: u32,
        mut handle: impl FnMut(Reply<T>, u16) -> ControlFlow<()>,
    ) -> Result<(), Failure>
    where
        T: NetlinkDeserializable,
    {
        loop {
            let length = self.read()?;
            let mut rest = &self.buffer[..length];
            while !rest.is_empty() {
                let message = NetlinkMessage::<T>::deserialize(rest).map_err(malformed)?;
                let end = (message.header.length as usize).next_multiple_of(ALIGNMENT).min(rest.len());
                rest = &rest[end..];
                let age = self.sequence.wrapping_sub(message.header.sequence_number);
                if age > self.sequence.wrapping_sub(first) {
                    continue;
                }
                let flags = message.header.flags;
                if let Some(reply) = Reply::of(message.payload)?
                    && handle(reply, flags).is_break()
                {
                    return Ok(());
                }
            }
        }
    }

    fn read(&mut self) -> Result<usize, Failure> {
        loop {
            match self.raw.recv(&mut self.buffer.as_mut_slice(), 0) {
                Ok(0) => return Err(Failure::Socket(Errno::EIO)),
                Ok(length) if length > self.buffer.len() => return Err(Failure::Socket(Errno::EMSGSIZE)),
                Ok(length) => return Ok(length),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<T> Reply<T> {
    fn of(payload: NetlinkPayload<T>) -> Result<Option<Self>, Failure> {
        Ok(Some(match payload {
            NetlinkPayload::InnerMessage(message) => Self::Message(message),
            NetlinkPayload::Error(error) if error.code.is_none() => Self::Acknowledged,
            NetlinkPayload::Error(error) => Self::Refused(Refused {
                errno: Errno::from_raw(error.raw_code().saturating_neg()),
                message: kernels_words(&error.header),
            }),
            NetlinkPayload::Done(done) if done.code < 0 => {
                Self::Refused(Refused { errno: Errno::from_raw(done.code.saturating_neg()), message: None })
            }
            NetlinkPayload::Done(_) => Self::Done,
            NetlinkPayload::Overrun(_) => return Err(Failure::Socket(Errno::ENOBUFS)),
            _ => return Ok(None),
        }))
    }
}

/// Finds the extended acknowledgement's text behind the echoed request header.
fn kernels_words(error: &[u8]) -> Option<String> {
    let attributes = NlasIterator::new(error.get(ECHOED_HEADER..)?);
    let message = attributes.flatten().find(|attribute| attribute.kind() == ATTRIBUTE_MESSAGE)?;
    let text = String::from_utf8_lossy(message.value());
    Some(text.trim_end_matches('\0').to_owned())
}

pub(super) fn malformed(error: impl std::fmt::Display) -> Failure {
    Failure::Malformed(error.to_string())
}
