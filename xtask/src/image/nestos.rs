//! The recipe of the real NestOS image: checked as far as that is possible without its base.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::repository;

/// Directories of the build context that build.sh fills.
const MADE_BY_BUILD: [&str; 2] = ["bin/", "units/"];

#[derive(Debug, PartialEq)]
struct Instruction {
    line: usize,
    keyword: String,
    arguments: String,
}

/// Checks the recipe and says what that does not cover.
pub fn check() -> Result<()> {
    let recipe = repository().join("images/nestos");
    let path = recipe.join("Containerfile");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let problems = problems(&parse(&text), &recipe);
    for problem in &problems {
        eprintln!("{}: {problem}", path.display());
    }
    ensure!(problems.is_empty(), "the NestOS recipe has {} problem(s)", problems.len());
    eprintln!(
        "the NestOS recipe is sound; building it needs the NestOS base and podman: {}",
        recipe.join("build.sh").display()
    );
    Ok(())
}

/// Instructions with their continuation lines, without comments.
fn parse(text: &str) -> Vec<Instruction> {
    let mut instructions: Vec<Instruction> = Vec::new();
    let mut continued = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (body, continues) = line.strip_suffix('\\').map_or((line, false), |body| (body.trim_end(), true));
        match instructions.last_mut() {
            Some(last) if continued => {
                last.arguments.push(' ');
                last.arguments.push_str(body);
            }
            _ => {
                let (keyword, arguments) = body.split_once(char::is_whitespace).unwrap_or((body, ""));
                let (keyword, arguments) = (keyword.to_uppercase(), arguments.trim().to_owned());
                instructions.push(Instruction { line: index + 1, keyword, arguments });
            }
        }
        continued = continues;
    }
    instructions
}

fn problems(instructions: &[Instruction], context: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let bases: Vec<&Instruction> = instructions.iter().filter(|instruction| instruction.keyword == "FROM").collect();
    match bases[..] {
        [base] if base.arguments == "${BASE}" => {}
        [base] => problems.push(format!("line {}: the base is an argument, ${{BASE}}, with a digest", base.line)),
        _ => problems.push(format!("there are {} bases", bases.len())),
    }
    if instructions.iter().any(|instruction| instruction.keyword == "ARG" && instruction.arguments.starts_with("BASE="))
    {
        problems.push("BASE has a default: a build would depend on the day".to_owned());
    }
    for instruction in instructions {
        let say = |problem: &str| format!("line {}: {problem}", instruction.line);
        match instruction.keyword.as_str() {
            "FROM" | "ARG" | "LABEL" => {}
            "COPY" => {
                let paths = instruction.arguments.split_whitespace().filter(|word| !word.starts_with("--"));
                let paths: Vec<&str> = paths.collect();
                let Some((destination, sources)) = paths.split_last() else { continue };
                if !destination.starts_with("/usr/") || destination.contains("..") {
                    problems.push(say("only /usr reaches a node"));
                }
                for source in sources {
                    if !MADE_BY_BUILD.contains(source) && !context.join(source).exists() {
                        problems.push(say(&format!("{source} is neither in the recipe nor made by build.sh")));
                    }
                }
            }
            "RUN" => {
                for fetcher in ["curl ", "wget ", "dnf ", "yum ", "rpm-ostree install", "://"] {
                    if instruction.arguments.contains(fetcher) {
                        problems.push(say(&format!("`{}` fetches something that nobody compared", fetcher.trim())));
                    }
                }
            }
            other => problems.push(say(&format!("{other} has no meaning for a node, or hides where a file is from"))),
        }
    }
    let last = instructions.last().filter(|last| last.keyword == "RUN");
    if !last.is_some_and(|last| last.arguments.ends_with("ostree container commit")) {
        problems.push("the last step is not `ostree container commit`".to_owned());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(text: &str) -> Vec<String> {
        problems(&parse(text), Path::new("/nonexistent"))
    }

    #[test]
    fn our_recipe_is_sound() {
        check().unwrap();
    }

    #[test]
    fn continuation_lines_belong_together() {
        let instructions = parse("# c\nRUN a \\\n  # c\n  && b\nCOPY x /usr/x\n");
        assert_eq!(instructions.len(), 2);
        assert_eq!(instructions[0].arguments, "a && b");
        assert_eq!(instructions[1].line, 5);
    }

    #[test]
    fn each_mistake_is_found() {
        let sound = "ARG BASE\nFROM ${BASE}\nCOPY bin/ /usr/bin/\nRUN true && ostree container commit\n";
        assert_eq!(problems_of(sound), Vec::<String>::new());
        for (from, to, problem) in [
            ("FROM ${BASE}", "FROM nestos:latest", "the base is an argument"),
            ("ARG BASE", "ARG BASE=nestos", "BASE has a default"),
            ("/usr/bin/", "/opt/bin/", "only /usr"),
            ("bin/ /usr", "missing /usr", "neither in the recipe"),
            ("RUN true", "RUN curl x", "fetches"),
            ("RUN true &&", "ENTRYPOINT x\nRUN", "has no meaning"),
            ("ostree container commit", "true", "last step"),
        ] {
            let found = problems_of(&sound.replace(from, to));
            assert!(found.iter().any(|found| found.contains(problem)), "{to}: {found:?}");
        }
    }
}
