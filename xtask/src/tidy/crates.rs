//! Which crate may use which: the programs among themselves, and the crates of others by `deny.toml`.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::{Problem, licence};
use crate::metadata::{Metadata, Package};
use crate::repository;

/// They meet on the wire, never in code. What they share is the contract.
const PROGRAMS: [&str; 3] = ["nkd-server", "nkd-agent", "nkd-operator"];
const CONTRACT: &str = "nkd-api";
const REGISTRY: &str = "registry+https://github.com/rust-lang/";

pub fn check(metadata: &Metadata) -> Result<Vec<Problem>> {
    let rules = std::fs::read_to_string(repository().join("deny.toml")).context("cannot read deny.toml")?;
    let rules: Table = rules.parse().context("deny.toml is not TOML")?;
    let mut problems = Vec::new();
    for member in metadata.members() {
        problems.extend(between_members(&member.name, &metadata.members_below(member)));
    }
    let allowed = strings(&rules["licenses"]["allow"]);
    for package in metadata.packages() {
        problems.extend(from_outside(package, &allowed));
    }
    for ban in rules["bans"]["deny"].as_array().into_iter().flatten() {
        let name = ban["crate"].as_str().context("a ban in deny.toml names no crate")?;
        let wrappers = ban.get("wrappers").map(strings).unwrap_or_default();
        problems.extend(banned(name, &metadata.users_of(name), &wrappers));
    }
    Ok(problems)
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn between_members(name: &str, below: &BTreeSet<&str>) -> Vec<Problem> {
    let forbidden = |other: &&&str| match name {
        CONTRACT => true,
        _ => PROGRAMS.contains(&name) && PROGRAMS.contains(*other) && **other != name,
    };
    let say = |other: &&str| Problem::new(name, format!("depends on {other}: move what both need to {CONTRACT}"));
    below.iter().filter(forbidden).map(say).collect()
}

fn from_outside(package: &Package, allowed: &[&str]) -> Option<Problem> {
    let place = format!("{} {}", package.name, package.version);
    let source = package.source.as_deref()?;
    if !source.starts_with(REGISTRY) {
        return Some(Problem::new(place, format!("comes from {source}: take crates from the registry only")));
    }
    let licence = package.licence.as_deref().unwrap_or("none");
    let message = || format!("its licence, {licence}, is not among those that deny.toml allows");
    (!licence::is_allowed(licence, allowed)).then(|| Problem::new(place, message()))
}

fn banned(name: &str, users: &BTreeSet<&str>, wrappers: &[&str]) -> Vec<Problem> {
    let stranger = |user: &&&str| !wrappers.contains(*user);
    let say = |user: &&str| Problem::new(*user, format!("uses the crate {name}, which deny.toml bans there"));
    users.iter().filter(stranger).map(say).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_meet_in_the_contract_only() {
        let count = |name, below: &[&'static str]| between_members(name, &below.iter().copied().collect()).len();
        assert_eq!(count("nkd-server", &["nkd-api"]), 0);
        assert_eq!(count("nkd-server", &["nkd-api", "nkd-agent"]), 1);
        assert_eq!(count("nkd-agent", &["nkd-server", "nkd-operator"]), 2);
        assert_eq!(count("nkd-api", &["nkd-vm-tests"]), 1);
        assert_eq!(count("xtask", &["nkd-vm-tests", "nkd-server"]), 0);
    }

    #[test]
    fn a_ban_spares_its_wrappers() {
        let users = BTreeSet::from(["nkd-agent", "nkd-server"]);
        assert_eq!(banned("ring", &users, &["nkd-agent"]).len(), 1);
        assert_eq!(banned("ring", &users, &[]).len(), 2);
    }
}
