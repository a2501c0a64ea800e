//! How our types and `ipnet`'s are written in CBOR (RFC 8949). Every decoder refuses what the type cannot hold,
//! and none allocates more than the bytes it was given can fill.

use minicbor::bytes::ByteArray;
use minicbor::decode::Error;
use minicbor::{Decode, Decoder, Encode, Encoder, encode};

use crate::config::Hostname;
use crate::key::PublicKey;

/// Decodes `bytes` as one value, or gives `None` if anything is wrong or left over.
pub(crate) fn decode_all<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Option<T> {
    let mut decoder = Decoder::new(bytes);
    let value = decoder.decode().ok()?;
    (decoder.position() == bytes.len()).then_some(value)
}

impl<C> Encode<C> for PublicKey {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(self.as_bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for PublicKey {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        Ok(Self::from_bytes(*d.decode::<ByteArray<32>>()?))
    }
}

impl<C> Encode<C> for Hostname {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.str(self.as_str())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Hostname {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        d.str()?.parse().map_err(|_| Error::message("a host name"))
    }
}

/// An IPv4 network: its four address bytes and its prefix length, as five bytes.
pub(crate) mod ipv4_net {
    use ipnet::{IpNet, Ipv4Net};

    use super::*;

    pub(crate) fn encode<C, W: encode::Write>(
        net: &Ipv4Net,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        ip_nets::encode_one((*net).into(), e)
    }

    pub(crate) fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<Ipv4Net, Error> {
        match ip_nets::decode_one(d)? {
            IpNet::V4(net) => Ok(net),
            IpNet::V6(_) => Err(Error::message("an IPv4 network")),
        }
    }
}

/// A socket address: its address bytes and its port, six or eighteen bytes. A scope is of no use to another host.
pub(crate) mod socket_address {
    use std::net::{IpAddr, SocketAddr};

    use super::*;

    pub(crate) fn encode<C, W: encode::Write>(
        address: &SocketAddr,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        let mut bytes = match address.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        bytes.extend(address.port().to_be_bytes());
        e.bytes(&bytes)?.ok()
    }

    pub(crate) fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<SocketAddr, Error> {
        let wrong = || Error::message("a socket address");
        let (ip, port) = d.bytes()?.split_last_chunk().ok_or_else(wrong)?;
        let ip = match ip.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(ip).map_err(|_| wrong())?),
            16 => IpAddr::from(<[u8; 16]>::try_from(ip).map_err(|_| wrong())?),
            _ => return Err(wrong()),
        };
        Ok(SocketAddr::new(ip, u16::from_be_bytes(*port)))
    }
}

/// A list of socket addresses.
pub(crate) mod socket_addresses {
    use std::net::SocketAddr;

    use super::*;

    pub(crate) fn encode<C, W: encode::Write>(
        addresses: &[SocketAddr],
        e: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(addresses.len() as u64)?;
        addresses.iter().try_for_each(|address| socket_address::encode(address, e, context))
    }

    pub(crate) fn decode<'b, C>(d: &mut Decoder<'b>, context: &mut C) -> Result<Vec<SocketAddr>, Error> {
        let count = d.array()?.ok_or_else(|| Error::message("a list of known length"))?;
        (0..count).map(|_| socket_address::decode(d, context)).collect()
    }
}

/// A list of networks of both families: address bytes and prefix length, five or seventeen bytes each.
pub(crate) mod ip_nets {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{IpNet, Ipv4Net, Ipv6Net};

    use super::*;

    pub(super) fn encode_one<W: encode::Write>(
        net: IpNet,
        e: &mut Encoder<W>,
    ) -> Result<(), encode::Error<W::Error>> {
        let mut bytes = match net {
            IpNet::V4(net) => net.addr().octets().to_vec(),
            IpNet::V6(net) => net.addr().octets().to_vec(),
        };
        bytes.push(net.prefix_len());
        e.bytes(&bytes)?.ok()
    }

    pub(super) fn decode_one(d: &mut Decoder<'_>) -> Result<IpNet, Error> {
        let bytes = d.bytes()?;
        let (&prefix, address) = bytes.split_last().ok_or_else(|| Error::message("a network"))?;
        let net = if let Ok(v4) = <[u8; 4]>::try_from(address) {
            Ipv4Net::new(Ipv4Addr::from(v4), prefix).map(IpNet::V4)
        } else if let Ok(v6) = <[u8; 16]>::try_from(address) {
            Ipv6Net::new(Ipv6Addr::from(v6), prefix).map(IpNet::V6)
        } else {
            return Err(Error::message("a network has four or sixteen address bytes"));
        };
        net.map_err(|_| Error::message("a prefix length that fits"))
    }

    pub(crate) fn encode<C, W: encode::Write>(
        nets: &[IpNet],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(nets.len() as u64)?;
        nets.iter().try_for_each(|&net| encode_one(net, e))
    }

    pub(crate) fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<Vec<IpNet>, Error> {
        let count = d.array()?.ok_or_else(|| Error::message("a list of known length"))?;
        // Grows with what is really there, whatever the count claims.
        (0..count).map(|_| decode_one(d)).collect()
    }
}

/// Civil time in milliseconds.
pub(crate) mod wall_clock {
    use super::*;
    use crate::time::WallClock;

    pub(crate) fn encode<C, W: encode::Write>(
        time: &WallClock,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.u64(time.as_millis())?.ok()
    }

    pub(crate) fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<WallClock, Error> {
        d.u64().map(WallClock::from_millis)
    }
}
