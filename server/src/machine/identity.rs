//! Recognising a machine (pure).
//!
//! A machine is known by more than one key: its MAC addresses, its SMBIOS UUID, its serial number. Boards lie:
//! some batches share one UUID, some have none. So a MAC decides; a UUID or serial helps only when it is not a
//! placeholder and points to exactly one machine; a contradiction is said, never guessed.

use std::net::{IpAddr, Ipv4Addr};

use icu_properties::CodePointMapData;
use icu_properties::props::GeneralCategory;
use nkd_api::facts::{Facts, Firmware};
use nkd_api::machine::{Identity, Machine};

/// What was seen of a machine in one packet or request.
pub type Sighting = Identity;

/// Whose record a sighting belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recognised {
    /// The record with this index in the candidates.
    One(usize),
    /// None of them: a new machine.
    New,
}

/// Finds the record of a sighting among the machines that share a key with it.
#[must_use]
pub fn recognise(sighting: &Sighting, candidates: &[&Machine]) -> Recognised {
    if let Some(i) = candidates.iter().position(|m| m.identity.macs.iter().any(|mac| sighting.macs.contains(mac))) {
        return Recognised::One(i);
    }
    // A second NIC, or a declared machine whose MAC nobody knew. Only a key that stands on exactly one record counts.
    let by = |key: fn(&Identity) -> Option<&String>| {
        let wanted = key(sighting)?;
        let mut hits = candidates.iter().enumerate().filter(|(_, m)| key(&m.identity) == Some(wanted));
        match (hits.next(), hits.next()) {
            (Some((i, machine)), None) => Some((i, machine)),
            _ => None,
        }
    };
    let contradicts = |machine: &Machine| {
        let differs = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
        differs(&machine.identity.uuid, &sighting.uuid) || differs(&machine.identity.serial, &sighting.serial)
    };
    let keys: [fn(&Identity) -> Option<&String>; 2] = [|i| i.uuid.as_ref(), |i| i.serial.as_ref()];
    for key in keys {
        // A record that already has a MAC is joined by a further MAC only when UUID and serial both agree: boards of
        // one batch may share either.
        if let Some((i, machine)) = by(key) {
            let both = machine.identity.uuid.is_some()
                && machine.identity.uuid == sighting.uuid
                && machine.identity.serial.is_some()
                && machine.identity.serial == sighting.serial;
            if !contradicts(machine) && (machine.identity.macs.is_empty() || both) {
                return Recognised::One(i);
            }
        }
    }
    Recognised::New
}

/// Other machines that carry the same UUID: worth a word to the operator.
#[must_use]
pub fn clashes<'a>(machine: &Machine, candidates: &[&'a Machine]) -> Vec<&'a Machine> {
    candidates
        .iter()
        .filter(|other| {
            other.id != machine.id && other.identity.uuid.is_some() && other.identity.uuid == machine.identity.uuid
        })
        .copied()
        .collect()
}

/// MAC addresses kept for one machine: more than a server has ports.
const MACS: usize = 32;

/// Adds what a sighting knows to a record; true when that changed it. What is known is never unlearned.
pub fn learn(identity: &mut Identity, sighting: &Sighting) -> bool {
    let before = identity.clone();
    for mac in &sighting.macs {
        if !identity.macs.contains(mac) && identity.macs.len() < MACS {
            identity.macs.push(*mac);
        }
    }
    let fill = |to: &mut Option<String>, from: &Option<String>| {
        if to.is_none() {
            to.clone_from(from);
        }
    };
    fill(&mut identity.uuid, &sighting.uuid);
    fill(&mut identity.serial, &sighting.serial);
    fill(&mut identity.vendor, &sighting.vendor);
    fill(&mut identity.product, &sighting.product);
    fill(&mut identity.architecture, &sighting.architecture);
    if sighting.firmware != Firmware::Unknown {
        identity.firmware = sighting.firmware;
    }
    *identity != before
}

/// The identity that facts of the agent amount to. Its NICs are no keys: a bond or a bridge shows the MAC of another.
#[must_use]
pub fn from_facts(facts: &Facts) -> Sighting {
    Identity {
        macs: Vec::new(),
        uuid: facts.uuid.as_deref().and_then(usable_uuid),
        serial: facts.serial.as_deref().and_then(usable_text),
        vendor: facts.vendor.as_deref().and_then(usable_text),
        product: facts.product.as_deref().and_then(usable_text),
        firmware: facts.firmware,
        architecture: Some(facts.architecture.clone()).filter(|a| !a.is_empty()),
    }
}

/// The address that a machine has by its own word, if it is not the one that was seen last: its installed system may have
/// another one than the lease that it booted with. Only what is up and has a MAC of this machine counts.
#[must_use]
pub fn address_of(identity: &Identity, facts: &Facts, seen: Option<IpAddr>) -> Option<IpAddr> {
    let own = facts.nics.iter().filter(|nic| nic.up && identity.macs.contains(&nic.mac));
    let texts = own.flat_map(|nic| &nic.addresses).filter_map(|text| text.split('/').next()?.parse::<Ipv4Addr>().ok());
    let all: Vec<IpAddr> = texts.filter(|ip| !ip.is_link_local() && !ip.is_loopback()).map(IpAddr::V4).collect();
    if seen.is_some_and(|seen| all.contains(&seen)) { None } else { all.first().copied() }
}

/// A UUID in lower case, unless it is malformed or one of the placeholders that boards come with.
#[must_use]
pub fn usable_uuid(text: &str) -> Option<String> {
    let uuid: uuid::Uuid = text.trim().parse().ok()?;
    let bytes = uuid.as_bytes();
    let known_placeholder = uuid.to_string() == "03000200-0400-0500-0006-000700080009";
    (!known_placeholder && bytes.iter().any(|b| b != &bytes[0])).then(|| uuid.to_string())
}

/// False for characters that show nothing and change how others show: controls, line separators, and formats, such as
/// those that turn the direction of text or have no width.
#[must_use]
pub fn is_visible(c: char) -> bool {
    !matches!(
        CodePointMapData::<GeneralCategory>::new().get(c),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    )
}

/// Text from SMBIOS, as it shows, unless it is empty or says that nobody filled it in.
#[must_use]
pub fn usable_text(text: &str) -> Option<String> {
    let visible: String = text.chars().filter(|c| is_visible(*c)).collect();
    let first: String = visible.trim().chars().take(128).collect();
    let text = first.trim_end().to_owned();
    let lower = text.to_lowercase();
    let placeholder =
        ["not specified", "to be filled by o.e.m.", "default string", "system serial number", "none", "0", "unknown"];
    (!text.is_empty() && !placeholder.contains(&lower.as_str())).then_some(text)
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
