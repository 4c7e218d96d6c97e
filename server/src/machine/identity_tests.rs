//! Machines are told apart, and placeholders are no keys.

use nkd_api::MacAddr;
use proptest::prelude::*;
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;
use crate::machine::lifecycle::new_machine;

fn machine(n: u8, uuid: Option<&str>, serial: Option<&str>) -> Machine {
    let identity = Identity {
        macs: vec![MacAddr([2, 0, 0, 0, 0, n])],
        uuid: uuid.map(str::to_owned),
        serial: serial.map(str::to_owned),
        ..Identity::default()
    };
    new_machine(Uuid::from_u128(n.into()), identity, OffsetDateTime::UNIX_EPOCH)
}

const SHARED: &str = "11111111-2222-3333-4444-555555555555";

#[test]
fn a_shared_uuid_never_merges_two_boards() {
    let first = machine(1, Some(SHARED), None);
    let second = machine(2, Some(SHARED), None).identity;
    assert_eq!(recognise(&second, &[&first]), Recognised::New);
    let second = machine(2, Some(SHARED), None);
    assert_eq!(clashes(&second, &[&first]).len(), 1);
}

#[test]
fn a_second_nic_is_the_same_board_when_uuid_and_serial_agree() {
    let first = machine(1, Some(SHARED), Some("S1"));
    assert_eq!(recognise(&machine(2, Some(SHARED), Some("S1")).identity, &[&first]), Recognised::One(0));
    assert_eq!(recognise(&machine(2, Some(SHARED), Some("S2")).identity, &[&first]), Recognised::New);
}

#[test]
fn a_machine_declared_by_serial_is_found_by_it() {
    let mut declared = machine(1, None, Some("S1"));
    declared.identity.macs.clear();
    assert_eq!(recognise(&machine(9, Some(SHARED), Some("S1")).identity, &[&declared]), Recognised::One(0));
    // Two records with the same serial: a clash is not guessed away.
    let mut other = declared.clone();
    other.id = Uuid::from_u128(77);
    assert_eq!(recognise(&machine(9, None, Some("S1")).identity, &[&declared, &other]), Recognised::New);
}

#[test]
fn placeholders_are_no_keys() {
    for text in [
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "03000200-0400-0500-0006-000700080009",
        "no",
        "",
    ] {
        assert_eq!(usable_uuid(text), None, "{text}");
    }
    assert_eq!(
        usable_uuid(" 1111AAAA-2222-3333-4444-555555555555 ").as_deref(),
        Some("1111aaaa-2222-3333-4444-555555555555")
    );
    for text in ["", "  ", "Not Specified", "To Be Filled By O.E.M.", "Default string", "0", "\u{200b}0", "no\u{ad}ne"]
    {
        assert_eq!(usable_text(text), None, "{text}");
    }
    assert_eq!(usable_text(" S\u{7}1 ").as_deref(), Some("S1"));
    // It would show as CN-1.
    assert_eq!(usable_text("\u{202e}1-NC\u{202c}").as_deref(), Some("1-NC"));
}

proptest! {
    /// Whatever cannot be seen is left out, wherever it stands, and nothing else is.
    #[test]
    fn text_of_a_board_shows_as_it_is(odd in r"[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Zs}a-zé]{0,60}") {
        let text = usable_text(&format!("{odd}S{odd}")).unwrap();
        let separates = |c: char| ['\u{2028}', '\u{2029}'].contains(&c) || c.is_control();
        let shown = |c: char| c.is_alphabetic() || c.is_whitespace() && !separates(c);
        prop_assert!(text.chars().all(shown), "{text:?}");
        let letters = |text: &str| text.chars().filter(|c| c.is_alphabetic()).collect::<String>();
        prop_assert_eq!(letters(&text), letters(&format!("{odd}S{odd}")));
        prop_assert_eq!(text.trim(), &text);
        prop_assert_eq!(usable_text(&text), Some(text));
    }

    /// What is known is never unlearned, and learning twice is learning once.
    #[test]
    fn learning_only_adds(uuid in proptest::option::of("[a-f]{3}"), serial in proptest::option::of("[A-Z]{3}"), n: u8) {
        let mut known = machine(1, Some(SHARED), None).identity;
        let sighting = Identity { macs: vec![MacAddr([2, 0, 0, 0, 0, n])], uuid, serial: serial.clone(), ..Identity::default() };
        learn(&mut known, &sighting);
        prop_assert_eq!(known.uuid.as_deref(), Some(SHARED));
        prop_assert_eq!(&known.serial, &serial);
        prop_assert!(known.macs.contains(&MacAddr([2, 0, 0, 0, 0, 1])));
        prop_assert!(!learn(&mut known, &sighting));
    }
}

#[test]
fn the_address_is_that_of_its_own_card() {
    let nic = |mac: MacAddr, up, addresses: &[&str]| nkd_api::facts::Nic {
        name: "eth0".into(),
        mac,
        up,
        addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
    };
    let own = MacAddr([2, 0, 0, 0, 0, 1]);
    let identity = Identity { macs: vec![own], ..Identity::default() };
    let address = |nics: Vec<nkd_api::facts::Nic>, seen: Option<&str>| {
        let facts = Facts { nics, ..Facts::default() };
        address_of(&identity, &facts, seen.map(|text| text.parse().unwrap())).map(|ip| ip.to_string())
    };
    let all = &["fe80::1/64", "169.254.3.4/16", "192.0.2.11/24", "192.0.2.12/24"][..];
    assert_eq!(address(vec![nic(own, true, all)], Some("192.0.2.150")).as_deref(), Some("192.0.2.11"));
    assert_eq!(address(vec![nic(own, true, all)], None).as_deref(), Some("192.0.2.11"));
    assert_eq!(address(vec![nic(own, true, all)], Some("192.0.2.12")), None, "it has that one too");
    assert_eq!(address(vec![nic(own, false, all), nic(MacAddr([2, 0, 0, 0, 0, 9]), true, all)], None), None);
    assert_eq!(address(vec![nic(own, true, &["what"])], None), None);
}
