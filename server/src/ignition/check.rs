//! What is wrong with a configuration, every problem with its path (pure).
//!
//! The typed reading finds wrong types and, by writing it back, keys that the specification does not know. The rest
//! is what Ignition's own validator refuses, and what it lets through and fails on at boot.

use std::collections::BTreeMap;

use ignition_config::{v3_3, v3_4};
use nkd_api::Problem;
use serde_json::Value;

/// All problems of `config` under specification `spec` (3.3.0 or 3.4.0).
pub(super) fn problems(config: &Value, spec: &str) -> Vec<Problem> {
    let mut found = Vec::new();
    let typed = match spec {
        "3.3.0" => serde_json::from_value::<v3_3::Config>(config.clone()).map(serde_json::to_value),
        "3.4.0" => serde_json::from_value::<v3_4::Config>(config.clone()).map(serde_json::to_value),
        other => {
            return vec![problem(
                "ignition.version",
                format!("specification {other} is not supported: 3.3.0 or 3.4.0"),
            )];
        }
    };
    match typed {
        Ok(Ok(known)) => unknown_keys(config, &known, "", &mut found),
        Ok(Err(e)) | Err(e) => return vec![problem("", e.to_string())],
    }
    storage(&config["storage"], &mut found);
    units(&config["systemd"]["units"], &mut found);
    users(&config["passwd"]["users"], &mut found);
    found
}

fn problem(path: &str, message: impl Into<String>) -> Problem {
    Problem { path: path.to_owned(), message: message.into() }
}

fn unknown_keys(given: &Value, known: &Value, path: &str, found: &mut Vec<Problem>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match known.get(key) {
                    Some(inner) => unknown_keys(value, inner, &at, found),
                    None => {
                        found.push(problem(&at, "the Ignition specification has no such field: check its spelling"))
                    }
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (i, (given, known)) in given.iter().zip(known).enumerate() {
                unknown_keys(given, known, &format!("{path}[{i}]"), found);
            }
        }
        _ => {}
    }
}

fn storage(storage: &Value, found: &mut Vec<Problem>) {
    let mut nodes: BTreeMap<String, String> = BTreeMap::new();
    let mut links = Vec::new();
    for kind in ["directories", "files", "links"] {
        for (i, node) in list(&storage[kind]).enumerate() {
            let at = format!("storage.{kind}[{i}]");
            let path = node["path"].as_str().unwrap_or_default();
            path_problem(path, &format!("{at}.path"), found);
            if let Some(first) = nodes.insert(path.to_owned(), at.clone()) {
                found.push(problem(&format!("{at}.path"), format!("{path} stands at {first} already")));
            }
            if kind == "links" {
                links.push((path.to_owned(), at.clone()));
            }
            if let Some(mode) = node["mode"].as_i64()
                && !(0..=0o7777).contains(&mode)
            {
                found.push(problem(
                    &format!("{at}.mode"),
                    format!("{mode} is not a file mode: write it in octal, 0644"),
                ));
            }
            if kind == "files" {
                resource(&node["contents"], &format!("{at}.contents"), found);
                for (j, part) in list(&node["append"]).enumerate() {
                    resource(part, &format!("{at}.append[{j}]"), found);
                }
            }
        }
    }
    for (path, at) in &nodes {
        // Writing below a link or below a file fails when the machine boots.
        for (link, link_at) in &links {
            if path.starts_with(&format!("{link}/")) {
                found.push(problem(at, format!("{path} lies below the link {link} of {link_at}")));
            }
        }
    }
    for (i, disk) in list(&storage["disks"]).enumerate() {
        path_problem(disk["device"].as_str().unwrap_or_default(), &format!("storage.disks[{i}].device"), found);
    }
    for (i, fs) in list(&storage["filesystems"]).enumerate() {
        path_problem(fs["device"].as_str().unwrap_or_default(), &format!("storage.filesystems[{i}].device"), found);
        if let Some(path) = fs["path"].as_str() {
            path_problem(path, &format!("storage.filesystems[{i}].path"), found);
        }
    }
}

fn path_problem(path: &str, at: &str, found: &mut Vec<Problem>) {
    if !path.starts_with('/') {
        found.push(problem(at, format!("`{path}` is not an absolute path")));
    } else if path.split('/').skip(1).any(|part| part == ".." || part == "." || part.is_empty()) {
        found.push(problem(at, format!("`{path}` is not a clean path: no `.`, `..` or double slashes")));
    }
}

fn resource(resource: &Value, at: &str, found: &mut Vec<Problem>) {
    if let Some(source) = resource["source"].as_str() {
        let scheme = source.split_once(':').map(|(s, _)| s).unwrap_or_default();
        if !["http", "https", "data", "tftp", "s3", "arn", "gs"].contains(&scheme) && !source.is_empty() {
            found
                .push(problem(&format!("{at}.source"), format!("`{scheme}:` is not an address that Ignition fetches")));
        }
        if scheme == "tftp" {
            found.push(problem(&format!("{at}.source"), "Ignition never retries TFTP: use HTTP"));
        }
    }
    if let Some(hash) = resource["verification"]["hash"].as_str() {
        let good = match hash.split_once('-') {
            Some(("sha256", hex)) => hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()),
            Some(("sha512", hex)) => hex.len() == 128 && hex.bytes().all(|b| b.is_ascii_hexdigit()),
            _ => false,
        };
        if !good {
            found.push(problem(&format!("{at}.verification.hash"), "a hash is sha256- or sha512- and hex digits"));
        }
    }
}

fn units(units: &Value, found: &mut Vec<Problem>) {
    const SUFFIXES: [&str; 10] =
        [".service", ".socket", ".device", ".mount", ".automount", ".swap", ".target", ".path", ".timer", ".slice"];
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, unit) in list(units).enumerate() {
        let at = format!("systemd.units[{i}].name");
        let name = unit["name"].as_str().unwrap_or_default();
        if !SUFFIXES.iter().any(|s| name.ends_with(s) && name.len() > s.len()) {
            found.push(problem(&at, format!("`{name}` is not a unit name: it ends in .service, .socket, .mount, ...")));
        }
        if name.contains('/') {
            found.push(problem(&at, format!("`{name}` has a slash")));
        }
        if let Some(first) = names.insert(name, i) {
            found.push(problem(&at, format!("{name} stands at systemd.units[{first}] already")));
        }
        for (j, dropin) in list(&unit["dropins"]).enumerate() {
            let name = dropin["name"].as_str().unwrap_or_default();
            if !name.ends_with(".conf") || name.contains('/') {
                let at = format!("systemd.units[{i}].dropins[{j}].name");
                found.push(problem(&at, format!("`{name}` is not the name of a drop-in: it ends in .conf")));
            }
        }
    }
}

fn users(users: &Value, found: &mut Vec<Problem>) {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, user) in list(users).enumerate() {
        let name = user["name"].as_str().unwrap_or_default();
        let at = format!("passwd.users[{i}].name");
        if name.is_empty() {
            found.push(problem(&at, "a user needs a name"));
        }
        if let Some(first) = names.insert(name, i) {
            found.push(problem(&at, format!("{name} stands at passwd.users[{first}] already")));
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
