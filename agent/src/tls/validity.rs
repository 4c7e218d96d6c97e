//! What a certificate says of itself: validity, serial number and subject (RFC 5280, 4.1.2), read straight from its DER.
//!
//! rustls checks all of it and tells none of it.

use std::time::Duration;

use rustls_pki_types::UnixTime;
use time::{Date, Month, PrimitiveDateTime, Time};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SET: u8 = 0x31;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, the version of a certificate.
const VERSION: u8 = 0xa0;

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// `O=system:masters, CN=kubernetes-admin`; attributes without a common name of theirs are left out.
    pub subject: String,
    /// First moment.
    pub not_before: UnixTime,
    /// Last moment.
    pub not_after: UnixTime,
}

/// First and last moment of a certificate. None: this is not a certificate.
#[must_use]
pub fn validity(der: &[u8]) -> Option<(UnixTime, UnixTime)> {
    summary(der).map(|read| (read.not_before, read.not_after))
}

/// What a certificate says of itself. None: this is not a certificate.
#[must_use]
pub fn summary(der: &[u8]) -> Option<Summary> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (mut body, _) = element(certificate, SEQUENCE)?;
    if let Some((_, rest)) = element(body, VERSION) {
        body = rest;
    }
    let (serial, body) = element(body, INTEGER)?;
    let (_, body) = element(body, SEQUENCE)?; // signature algorithm
    let (_, body) = element(body, SEQUENCE)?; // issuer
    let (validity, body) = element(body, SEQUENCE)?;
    let (not_before, rest) = moment(validity)?;
    let (not_after, _) = moment(rest)?;
    let (names, _) = element(body, SEQUENCE)?;
    let serial = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Summary { serial, subject: subject(names)?, not_before, not_after })
}

/// The attributes of a name (RFC 5280, 4.1.2.4) that certificates of Kubernetes have.
fn subject(mut names: &[u8]) -> Option<String> {
    let mut all = Vec::new();
    while !names.is_empty() {
        let (mut set, rest) = element(names, SET)?;
        names = rest;
        while !set.is_empty() {
            let (attribute, rest) = element(set, SEQUENCE)?;
            set = rest;
            let (kind, value) = element(attribute, OBJECT_IDENTIFIER)?;
            let word = match kind {
                [0x55, 0x04, 0x03] => "CN",
                [0x55, 0x04, 0x0a] => "O",
                [0x55, 0x04, 0x0b] => "OU",
                _ => continue,
            };
            let (text, _) = element(value, *value.first()?)?;
            all.push(format!("{word}={}", String::from_utf8_lossy(text)));
        }
    }
    Some(all.join(", "))
}

/// Splits the element with `tag` off: its content, and what follows.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, der) = der.split_first()?;
    if found != tag {
        return None;
    }
    let (&first, der) = der.split_first()?;
    let (length, der) = if first < 0x80 {
        (usize::from(first), der)
    } else {
        let (bytes, der) = der.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.is_empty() || bytes.len() > 4 {
            return None;
        }
        (bytes.iter().try_fold(0usize, |sum, &b| sum.checked_mul(256)?.checked_add(usize::from(b)))?, der)
    };
    der.split_at_checked(length)
}

fn moment(der: &[u8]) -> Option<(UnixTime, &[u8])> {
    let (digits, century, rest) = match element(der, UTC_TIME) {
        Some((text, rest)) => {
            let (&[a, b], digits) = text.split_first_chunk::<2>()?;
            let year = number(&[a, b])?;
            (digits, if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        None => {
            let (text, rest) = element(der, GENERALIZED_TIME)?;
            let (year, digits) = text.split_first_chunk::<4>()?;
            (digits, number(year)?, rest)
        }
    };
    let [mo, mp, d, dp, h, hp, mi, mip, s, sp, b'Z'] = *digits else {
        return None;
    };
    let two = |a, b| number(&[a, b]).and_then(|n| u8::try_from(n).ok());
    let month = Month::try_from(two(mo, mp)?).ok()?;
    let date = Date::from_calendar_date(century, month, two(d, dp)?).ok()?;
    let time = Time::from_hms(two(h, hp)?, two(mi, mip)?, two(s, sp)?).ok()?;
    let seconds = PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp();
    // Before 1970 is 1970: nothing that uses this asks for more.
    Some((UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))), rest))
}

fn number(digits: &[u8]) -> Option<i32> {
    digits.iter().try_fold(0i32, |sum, d| d.is_ascii_digit().then(|| sum * 10 + i32::from(d - b'0')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::OffsetDateTime;

    use super::*;

    fn made(from: i64, to: i64) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap();
        params.not_before = OffsetDateTime::from_unix_timestamp(from).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(to).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_certificate_tells_its_dates(from in 0i64..4_000_000_000, life in 0i64..4_000_000_000) {
            let (not_before, not_after) = validity(&made(from, from + life)).unwrap();
            prop_assert_eq!(not_before.as_secs(), u64::try_from(from).unwrap());
            prop_assert_eq!(not_after.as_secs(), u64::try_from(from + life).unwrap());
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, cut in 0usize..400, place in 0usize..400, value: u8) {
            let _ = validity(&bytes);
            let mut der = made(0, 1);
            if let Some(byte) = der.get_mut(place) {
                *byte = value;
            }
            der.truncate(cut);
            let _ = validity(&der);
        }
    }
}
