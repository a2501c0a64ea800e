//! What is on the wire around a datagram: the socket filter, the UDP header and its checksum. Pure, so that each byte
//! can be tested without a raw socket.

use std::net::{IpAddr, SocketAddr};

use nix::libc;
use socket2::SockFilter;

pub(super) const UDP_HEADER_BYTES: usize = 8;

/// The longest IPv4 header: raw IPv4 sockets hand it out with each packet, raw IPv6 sockets don't.
pub(super) const MAX_IPV4_HEADER_BYTES: usize = 60;

const MIN_IPV4_HEADER_BYTES: usize = 20;

const UDP: u8 = 17;

/// Returns the program with which the kernel picks our packets out of all UDP that reaches the host: those to WireGuard's
/// port that begin with none of WireGuard's four message types. Whatever is too short to tell is left out.
pub(super) fn filter(v4: bool, port: u16) -> Vec<SockFilter> {
    const LOAD_HEADER_LENGTH: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
    const LOAD_X: u32 = libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
    const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;
    const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let instruction = |code: u32, jump_true, jump_false, constant| {
        SockFilter::new(u16::try_from(code).expect("codes have 16 bits"), jump_true, jump_false, constant)
    };
    // X is where the UDP header begins: after the IPv4 header with its options, or at once.
    let begin = if v4 { LOAD_HEADER_LENGTH } else { LOAD_X };
    vec![
        instruction(begin, 0, 0, 0),
        instruction(LOAD_HALF, 0, 0, 2),
        instruction(JUMP_IF_EQUAL, 0, 6, port.into()),
        instruction(LOAD_WORD, 0, 0, 8),
        instruction(JUMP_IF_EQUAL, 4, 0, 0x0100_0000),
        instruction(JUMP_IF_EQUAL, 3, 0, 0x0200_0000),
        instruction(JUMP_IF_EQUAL, 2, 0, 0x0300_0000),
        instruction(JUMP_IF_EQUAL, 1, 0, 0x0400_0000),
        instruction(RETURN, 0, 0, u32::MAX),
        instruction(RETURN, 0, 0, 0),
    ]
}

/// Returns the UDP packet that carries these bytes from one address to another, or `None` if they are too many.
pub(super) fn write_udp(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER_BYTES + bytes.len()).ok()?;
    let mut packet = Vec::with_capacity(length.into());
    for field in [from.port(), to.port(), length, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(bytes);
    let checksum = checksum(from.ip(), to.ip(), &packet);
    packet[6..8].copy_from_slice(&checksum.to_be_bytes());
    Some(packet)
}

/// Reads what a raw socket of WireGuard's port received: returns the sender's port and the datagram, or `None` where it
/// is not whole, or came before the filter did, or for a port that is no longer ours.
///
/// The checksum is not looked at: between hosts on one machine the kernel leaves it unfinished, and what we take is
/// authenticated anyway.
pub(super) fn read_udp(v4: bool, port: u16, packet: &[u8]) -> Option<(u16, &[u8])> {
    let udp = if v4 { skip_ipv4_header(packet)? } else { packet };
    let (header, rest) = udp.split_first_chunk::<UDP_HEADER_BYTES>()?;
    let [from_high, from_low, to_high, to_low, length_high, length_low, ..] = *header;
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let from = u16::from_be_bytes([from_high, from_low]);
    let is_ours = u16::from_be_bytes([to_high, to_low]) == port && !is_wireguards(rest);
    (is_ours && from != 0 && length == udp.len()).then_some((from, rest))
}

/// Whether it begins with one of WireGuard's four message types, or is too short to tell.
fn is_wireguards(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_none_or(|&kind| (1..=4).contains(&u32::from_le_bytes(kind)))
}

/// Whether an honest datagram can come from there.
pub(super) fn is_sender(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast
}

fn skip_ipv4_header(packet: &[u8]) -> Option<&[u8]> {
    let &first = packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    let is_plain_udp = first >> 4 == 4 && header >= MIN_IPV4_HEADER_BYTES && packet.get(9) == Some(&UDP);
    packet.get(header..).filter(|_| is_plain_udp)
}

/// RFC 768, RFC 8200 §8.1: the ones' complement sum over a pseudo header and the packet, of which zero is written as
/// all ones.
fn checksum(from: IpAddr, to: IpAddr, packet: &[u8]) -> u16 {
    let addresses = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (from, to) => [v6_octets(from), v6_octets(to)].concat(),
    };
    let words = |bytes: &[u8]| -> u64 {
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum()
    };
    let mut sum = words(&addresses) + u64::from(UDP) + packet.len() as u64 + words(packet);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    match !(sum as u16) {
        0 => 0xffff,
        checksum => checksum,
    }
}

fn v6_octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use proptest::prelude::*;
    use socket2::SockRef;

    use super::*;

    const PORT: u16 = 51820;

    fn ipv4_header(words: u8) -> Vec<u8> {
        let mut header = vec![0; usize::from(words) * 4];
        (header[0], header[9]) = (0x40 | words, UDP);
        header
    }

    fn udp(to: u16, bytes: &[u8]) -> Vec<u8> {
        let address = |port| SocketAddr::new("192.0.2.1".parse().unwrap(), port);
        write_udp(address(7), address(to), bytes).unwrap()
    }

    /// Asks the kernel itself: a filter sees the same bytes on a Unix socket.
    fn is_let_through(v4: bool, packet: &[u8]) -> bool {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        SockRef::from(&receiver).attach_filter(&filter(v4, PORT)).unwrap();
        receiver.set_nonblocking(true).unwrap();
        // Refused packets are an error here, unlike on the network.
        sender.send(packet).ok();
        receiver.recv(&mut [0; 2000]).is_ok()
    }

    /// DESIGN 6: WireGuard's own packets never wake us, whatever the IPv4 header's length; ours and STUN do.
    #[test]
    fn the_filter_lets_through_what_is_not_wireguards() {
        let stun = [&[1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[9; 12]].concat();
        let cases: [(&[u8], bool); 12] = [
            (&[1, 0, 0, 0, 9, 9], false),
            (&[2, 0, 0, 0, 9, 9], false),
            (&[3, 0, 0, 0, 9, 9], false),
            (&[4, 0, 0, 0, 9, 9], false),
            (&[4, 0, 0, 0], false),
            (&[], false),
            (&[1, 1, 7], false),
            (&[1, 1, 7, 8], true),
            (&[1, 0, 0, 1, 9, 9], true),
            (&[5, 0, 0, 0, 9, 9], true),
            (&[0, 0, 0, 0, 9, 9], true),
            (&stun, true),
        ];
        for (bytes, expected) in cases {
            for words in [5, 6, 15] {
                let packet = [ipv4_header(words), udp(PORT, bytes)].concat();
                assert_eq!(is_let_through(true, &packet), expected, "{bytes:?} after {words} words");
                assert_eq!(read_udp(true, PORT, &packet).is_some(), expected, "{bytes:?} before the filter");
                let other_port = [ipv4_header(words), udp(PORT + 1, bytes)].concat();
                assert!(!is_let_through(true, &other_port));
            }
            assert_eq!(is_let_through(false, &udp(PORT, bytes)), expected, "{bytes:?}");
            assert!(!is_let_through(false, &udp(PORT - 1, bytes)));
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for bytes in [&b"datagram"[..], b"uneven!", &[1, 1, 0, 0]] {
            let packet = udp(PORT, bytes);
            assert_eq!(read_udp(false, PORT, &packet), Some((7, bytes)));
            for words in [5, 15] {
                let whole = [ipv4_header(words), packet.clone()].concat();
                assert_eq!(read_udp(true, PORT, &whole), Some((7, bytes)));
                assert_eq!(read_udp(true, PORT + 1, &whole), None, "the port has changed meanwhile");
                for end in 0..whole.len() {
                    assert_eq!(read_udp(true, PORT, &whole[..end]), None);
                }
            }
            assert_eq!(read_udp(false, PORT, &[&packet[..], b"more"].concat()), None);
        }
        assert_eq!(write_udp("[::1]:1".parse().unwrap(), "[::1]:2".parse().unwrap(), &[0; 65528]), None);
    }

    /// RFC 1071: with the sum in place, everything adds up to all ones.
    #[test]
    fn the_checksum_makes_everything_add_up() {
        for (from, to) in [("192.0.2.1:7", "198.51.100.9:51820"), ("[2001:db8::1]:7", "[fd00::2]:9")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for bytes in [&b""[..], b"x", b"wgmesh", &[0xff; 1200]] {
                let whole = write_udp(from, to, bytes).unwrap();
                assert_eq!(checksum(from.ip(), to.ip(), &whole), 0xffff, "{from} {to} {}", bytes.len());
            }
        }
        // Added by hand: twice 0x7f00 and 0x0001, protocol 17, twice the length 9, ports 1 and 2, the padded 'a'.
        let packet = write_udp("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap(), b"a").unwrap();
        assert_eq!(packet[6..8], (!0x5f29_u16).to_be_bytes());
    }

    #[test]
    fn nobody_sends_from_many_addresses_or_none() {
        for (ip, expected) in [
            ("192.0.2.1", true),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("224.0.0.1", false),
            ("fe80::1", true),
            ("::", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_sender(ip.parse().unwrap()), expected, "{ip}");
        }
    }

    proptest! {
        #[test]
        fn random_packets_never_panic(v4: bool, packet in proptest::collection::vec(any::<u8>(), 0..100)) {
            read_udp(v4, PORT, &packet);
        }
    }
}
