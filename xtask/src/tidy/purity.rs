//! The rule that keeps I/O out of the pure modules: nothing switches it off for them, and it works.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use toml::Table;

use super::Problem;
use super::source::Source;
use crate::{build, repository};

const LINT: &str = "clippy::disallowed_methods";
/// Lints and groups that hold it.
const LIFTING: [&str; 4] = [LINT, "clippy::all", "clippy::style", "warnings"];
/// Crates with the rule.
const CRATES: [&str; 4] = ["agent", "api", "operator", "server"];
/// Modules that decide, encode and decode. A folder ends with a slash.
const PURE: [&str; 67] = [
    "agent/src/balance/board.rs",
    "agent/src/state/",
    "agent/src/update/journal.rs",
    "agent/src/update/event.rs",
    "agent/src/update/state.rs",
    "api/src/",
    "operator/src/blocked.rs",
    "operator/src/budget.rs",
    "operator/src/credentials.rs",
    "operator/src/image.rs",
    "operator/src/plan.rs",
    "operator/src/seen.rs",
    "operator/src/step.rs",
    "operator/src/tell.rs",
    "operator/src/turn.rs",
    "operator/src/waits.rs",
    "operator/src/wish.rs",
    "server/src/cluster/change.rs",
    "server/src/cluster/health.rs",
    "server/src/cluster/housekeeper.rs",
    "server/src/cluster/leave.rs",
    "server/src/cluster/plan.rs",
    "server/src/cluster/quorum.rs",
    "server/src/cluster/recovery.rs",
    "server/src/cluster/renewal.rs",
    "server/src/cluster/snapshot/turn.rs",
    "server/src/cluster/spared.rs",
    "server/src/cluster/taints.rs",
    "server/src/cluster/upgrade/beside.rs",
    "server/src/cluster/upgrade/budgets.rs",
    "server/src/cluster/upgrade/metrics.rs",
    "server/src/cluster/upgrade/preflight.rs",
    "server/src/cluster/upgrade/verb.rs",
    "server/src/cluster/upgrade/verdict.rs",
    "server/src/content/channel/hold.rs",
    "server/src/content/channel/mirror/decide.rs",
    "server/src/content/channel/polled.rs",
    "server/src/content/channel/downgrade.rs",
    "server/src/content/channel/prune.rs",
    "server/src/content/channel/reads.rs",
    "server/src/content/channel/source/filez.rs",
    "server/src/content/channel/unknown.rs",
    "server/src/content/graph.rs",
    "server/src/content/image/profile.rs",
    "server/src/content/registry/spec/",
    "server/src/fleet/lock.rs",
    "server/src/fleet/task.rs",
    "server/src/ignition/",
    "server/src/machine/identity.rs",
    "server/src/machine/lifecycle.rs",
    "server/src/machine/lifecycle/waiting.rs",
    "server/src/machine/rules.rs",
    "server/src/netboot/bootplane/request.rs",
    "server/src/netboot/bootplane/response.rs",
    "server/src/netboot/decide.rs",
    "server/src/netboot/dhcp/engine.rs",
    "server/src/netboot/dhcp/packet.rs",
    "server/src/netboot/dhcp/pool.rs",
    "server/src/netboot/dhcp/profile.rs",
    "server/src/netboot/dhcp/proxy.rs",
    "server/src/netboot/dhcp/reply.rs",
    "server/src/netboot/ipxe.rs",
    "server/src/netboot/tftp/codec.rs",
    "server/src/netboot/tftp/names.rs",
    "server/src/netboot/tftp/netascii.rs",
    "server/src/netboot/tftp/transfer.rs",
    "server/src/settings/read.rs",
];

/// How the head of a file says that it is one of them, listed or not.
const SAYS_SO: [&str; 5] = ["(pure).", "(pure):", "(pure:", "(pure data).", "Pure."];

/// Every place where the rule would be off for a pure module.
pub fn covered(sources: &[Source]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for pure in PURE {
        if !sources.iter().any(|source| source.path.starts_with(pure)) {
            problems.push(Problem::new(pure, "listed as pure in xtask/src/tidy/purity.rs, and not there"));
        }
    }
    for source in sources {
        let Some(name) = CRATES.iter().find(|name| source.path.starts_with(&format!("{name}/"))) else { continue };
        if source.path == format!("{name}/Cargo.toml") && !inherits_lints(&source.text) {
            problems.push(Problem::new(&source.path, "take the workspace's lints: [lints] workspace = true"));
        }
        if source.is_rust() && source.path.starts_with(&format!("{name}/src/")) {
            problems.extend(in_file(source));
        }
    }
    let denied =
        |source: &&Source| source.path == "Cargo.toml" && source.text.contains("disallowed_methods = \"deny\"");
    if !sources.iter().any(|source| denied(&source)) {
        problems.push(Problem::new("Cargo.toml", "the workspace's lints must deny disallowed_methods"));
    }
    problems
}

fn inherits_lints(manifest: &str) -> bool {
    let table: Table = manifest.parse().unwrap_or_default();
    table.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
}

fn in_file(source: &Source) -> Option<Problem> {
    let stem = Path::new(&source.path).file_stem().unwrap_or_default().to_string_lossy();
    let test = stem.ends_with("tests") || source.path.contains("/tests/");
    let text = source.production();
    let pure = PURE.iter().any(|pure| source.path.starts_with(pure)) || says_so(text);
    if pure && !test && lifts(text) {
        return Some(Problem::new(
            &source.path,
            format!("is pure: take clock and data as arguments, do not lift {LINT}"),
        ));
    }
    // An inner attribute holds for the modules below as well.
    if inner_attributes(text).any(lifts) && child_modules(text).next().is_some() {
        let message = format!("lifts {LINT} for the modules below it too: move it to the functions that need it");
        return Some(Problem::new(&source.path, message));
    }
    let child = child_modules(text).find(|child| lifts(child.attributes))?;
    Some(Problem::new(&source.path, format!("lifts {LINT} for the whole module {}: lift it inside", child.name)))
}

/// By its first paragraph; what a file says of others stands further down.
fn says_so(text: &str) -> bool {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!")).take_while(|line| !line.trim().is_empty());
    let head = lines.collect::<String>();
    SAYS_SO.iter().any(|words| head.contains(words))
}

fn lifts(text: &str) -> bool {
    attributes(text).any(|attribute| {
        let level = ["allow(", "expect(", "warn("].iter().any(|level| attribute.contains(level));
        let lint = |lint: &&str| attribute.split(['(', ',', ')']).any(|part| part.trim() == *lint);
        level && LIFTING.iter().any(lint)
    })
}

fn attributes(text: &str) -> impl Iterator<Item = &str> {
    let starts = text.match_indices("#[").chain(text.match_indices("#!["));
    starts.map(|(at, _)| &text[at..text[at..].find(")]").map_or(text.len(), |end| at + end + 2)])
}

fn inner_attributes(text: &str) -> impl Iterator<Item = &str> {
    attributes(text).filter(|attribute| attribute.starts_with("#!["))
}

struct Child<'a> {
    name: &'a str,
    attributes: &'a str,
}

/// `mod name;` of the file, without those that are for tests.
fn child_modules(text: &str) -> impl Iterator<Item = Child<'_>> {
    let mut next = 0;
    text.split_inclusive('\n').filter_map(move |line| {
        let start = next;
        next += line.len();
        let (visibility, rest) = line.trim().split_once("mod ")?;
        let name = rest.strip_suffix(';')?;
        let attributes = attributes_before(&text[..start]);
        let declared = visibility.is_empty() || visibility.starts_with("pub");
        (declared && !attributes.contains("#[cfg(test)]")).then_some(Child { name, attributes })
    })
}

/// The attributes and comments at the end of `text`.
fn attributes_before(text: &str) -> &str {
    let mut start = text.len();
    loop {
        let head = text[..start].trim_end();
        let line = head.rfind('\n').map_or(0, |end| end + 1);
        if head[line..].trim_start().starts_with("//") && !head[line..].starts_with("//!") {
            start = line;
            continue;
        }
        match head.rfind('#') {
            Some(at) if head.ends_with(']') && head[at..].starts_with("#[") => start = at,
            _ => return &text[start..],
        }
    }
}

/// Lints a crate whose pure module calls what is forbidden. The error says what clippy let pass.
pub fn impure_code_is_refused() -> Result<()> {
    let root = repository();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["clippy", "--quiet", "--locked", "--message-format=json", "--manifest-path"])
        .arg(root.join("xtask/fixtures/impure/Cargo.toml"))
        .arg("--target-dir")
        .arg(build::target().join("impure"))
        .env("CLIPPY_CONF_DIR", &root)
        .current_dir(&root)
        .output()
        .context("cargo cannot be run")?;
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let refused: BTreeSet<String> = messages.lines().filter_map(refused_method).collect();
    let rules = std::fs::read_to_string(root.join("clippy.toml")).context("cannot read clippy.toml")?;
    let accepted: Vec<String> = forbidden(&rules)?.into_iter().filter(|path| !refused.contains(path)).collect();
    ensure!(
        accepted.is_empty(),
        "the rule against I/O in pure modules does not work: in xtask/fixtures/impure clippy accepts {} \
         (or the fixture does not call it)\n{}",
        accepted.join(", "),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(!output.status.success(), "clippy reports forbidden calls and still succeeds: is the lint denied?");
    Ok(())
}

/// What `clippy.toml` forbids, as far as the fixture can call it.
fn forbidden(rules: &str) -> Result<Vec<String>> {
    let table: Table = rules.parse().context("clippy.toml is not TOML")?;
    let methods =
        table.get("disallowed-methods").and_then(toml::Value::as_array).context("clippy.toml forbids nothing")?;
    let paths = methods.iter().filter_map(|method| method.get("path")?.as_str().map(str::to_owned));
    Ok(paths.filter(|path| path.starts_with("std::") || path.starts_with("uuid::")).collect())
}

fn refused_method(line: &str) -> Option<String> {
    let message: Value = serde_json::from_str(line).ok()?;
    let message = &message["message"];
    let is_error = message["level"] == "error" && message["code"]["code"] == LINT;
    let text = message["message"].as_str().filter(|_| is_error)?;
    text.split('`').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(path: &str, text: &str) -> Option<String> {
        in_file(&Source { path: path.into(), text: text.into() }).map(|problem| problem.message)
    }

    #[test]
    fn impure_code_is_refused_by_clippy() {
        impure_code_is_refused().unwrap();
    }

    #[test]
    fn a_pure_module_may_not_lift_the_rule() {
        let lift = "//! A.\n#[expect(clippy::disallowed_methods, reason = \"x\")]\nfn a() {}\n";
        assert!(problem("server/src/netboot/decide.rs", lift).unwrap().contains("is pure"));
        assert_eq!(problem("server/src/netboot/plane.rs", lift), None);
        assert_eq!(problem("server/src/ignition/tests.rs", lift), None);
        let test = "//! A.\n#[cfg(test)]\nmod tests {\n    #![allow(clippy::disallowed_methods)]\n}\n";
        assert_eq!(problem("server/src/netboot/decide.rs", test), None);
    }

    #[test]
    fn a_module_that_says_so_is_pure() {
        let lifted = |head: &str| {
            let text = format!("{head}#[expect(clippy::disallowed_methods, reason = \"x\")]\nfn a() {{}}\n");
            problem("server/src/new.rs", &text).is_some_and(|message| message.contains("is pure"))
        };
        for head in
            ["//! What is kept (pure data).\n", "//! A\n//! b. Pure.\n//!\n//! C.\n", "//! A (pure: a clock).\n"]
        {
            assert!(lifted(head), "{head}");
        }
        for head in ["//! What is needed (pure), and the job.\n", "//! A.\n//!\n//! `b` is not this one. Pure.\n"] {
            assert!(!lifted(head), "{head}");
        }
        // Listed: it stays pure when its head is written anew.
        let lift = "//! A.\n#[expect(clippy::disallowed_methods, reason = \"x\")]\nfn a() {}\n";
        for path in ["agent/src/update/journal.rs", "operator/src/waits.rs", "server/src/content/channel/polled.rs"] {
            assert!(problem(path, lift).is_some(), "{path}");
        }
    }

    #[test]
    fn a_parent_may_not_lift_the_rule_for_its_children() {
        let lift = "//! A.\n#![expect(clippy::disallowed_methods, reason = \"x\")]\n";
        assert_eq!(problem("server/src/a.rs", lift), None);
        assert_eq!(problem("server/src/a.rs", &format!("{lift}\n#[cfg(test)]\nmod tests;\n")), None);
        assert!(problem("server/src/a.rs", &format!("{lift}\npub(crate) mod b;\n")).unwrap().contains("below"));
        let both = format!("{lift}\n#[cfg(test)]\nmod tests;\nmod b;\n");
        assert!(problem("server/src/a.rs", &both).unwrap().contains("below"));
        let group = "//! A.\n#![allow(\n    clippy::all\n)]\nmod b;\n";
        assert!(problem("server/src/a.rs", group).unwrap().contains("below"));
        let outer = "//! A.\nmod a;\n#[allow(clippy::disallowed_methods)]\nmod b;\n";
        assert!(problem("server/src/a.rs", outer).unwrap().contains("module b"));
        assert_eq!(problem("server/src/a.rs", "//! A.\n#[allow(dead_code)]\nmod b;\n"), None);
    }

    #[test]
    fn only_errors_of_the_rule_count() {
        let line = |level, code| {
            format!(
                "{{\"message\":{{\"level\":\"{level}\",\"code\":{{\"code\":\"{code}\"}},\"message\":\"use of a disallowed method `std::fs::read`\"}}}}"
            )
        };
        assert_eq!(refused_method(&line("error", LINT)).as_deref(), Some("std::fs::read"));
        assert_eq!(refused_method(&line("warning", LINT)), None);
        assert_eq!(refused_method(&line("error", "E0425")), None);
        assert_eq!(refused_method("no JSON"), None);
    }
}
