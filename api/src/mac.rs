//! Ethernet hardware addresses (EUI-48).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 48-bit MAC address. Printed in lower case with colons, `52:54:00:aa:00:01`; parsed from that form,
/// with hyphens (`52-54-00-aa-00-01`, as iPXE's `${mac:hexhyp}`), or as twelve hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String, example = "52:54:00:aa:00:01"))]
pub struct MacAddr(pub [u8; 6]);

/// The text is not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a MAC address: write it as 52:54:00:aa:00:01")]
pub struct ParseMacError(String);

impl MacAddr {
    /// True for addresses that can name one machine: not all zeros, not broadcast, not multicast.
    #[must_use]
    pub fn is_usable(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for MacAddr {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MacAddr".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "format": "mac",
            "pattern": "^([0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{2}(-[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{12})$",
        })
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseMacError(text.chars().take(40).collect());
        let digits: Vec<u8> = match text.len() {
            12 => text.bytes().collect(),
            17 => {
                let separator = text.as_bytes()[2];
                if separator != b':' && separator != b'-' {
                    return Err(bad());
                }
                let groups: Vec<&[u8]> = text.as_bytes().split(|&b| b == separator).collect();
                if groups.len() != 6 || groups.iter().any(|g| g.len() != 2) {
                    return Err(bad());
                }
                groups.concat()
            }
            _ => return Err(bad()),
        };
        let mut out = [0u8; 6];
        for (byte, pair) in out.iter_mut().zip(digits.chunks(2)) {
            let hex = |b: u8| (b as char).to_digit(16);
            let (Some(high), Some(low)) = (hex(pair[0]), hex(pair[1])) else {
                return Err(bad());
            };
            *byte = u8::try_from(high * 16 + low).map_err(|_| bad())?;
        }
        Ok(Self(out))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = ParseMacError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_address_survives_print_and_parse(bytes: [u8; 6]) {
            let mac = MacAddr(bytes);
            prop_assert_eq!(mac.to_string().parse::<MacAddr>().unwrap(), mac);
            prop_assert_eq!(mac.to_string().replace(':', "-").to_uppercase().parse::<MacAddr>().unwrap(), mac);
            prop_assert_eq!(mac.to_string().replace(':', "").parse::<MacAddr>().unwrap(), mac);
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<MacAddr>();
        }
    }

    #[test]
    fn near_misses_are_refused() {
        for text in [
            "52:54:00:aa:00",
            "52:54:00:aa:00:0g",
            "52:54-00:aa:00:01",
            "5254:00:aa:00:01:",
            "52.54.00.aa.00.01",
            "ééééé1234567",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }
}
