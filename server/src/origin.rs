//! Who counts as one client where anybody may ask: limits hold for a network that one client can have alone (pure).

use std::net::{IpAddr, Ipv6Addr};

/// An IPv4 address, or the /64 network of an IPv6 address: whoever has one address there has all of them.
#[must_use]
pub fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let of = |text: &str| origin(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:0:1:2:3:4:5"), "2001:db8:0:1::");
        assert_ne!(of("2001:db8:0:2:2:3:4:5"), of("2001:db8:0:1:2:3:4:5"));
        assert_eq!((of("192.0.2.1"), of("::ffff:192.0.2.1")), ("192.0.2.1".into(), "192.0.2.1".into()));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
