//! Cluster files to begin with (pure).

/// Where the machines of a template run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Platform {
    /// Machines in a rack.
    Metal,
    /// Virtual machines under QEMU.
    Qemu,
}

/// A cluster file with comments, which passes the check as it is. `name` is a host name label (RFC 1123).
#[must_use]
pub fn template(platform: Platform, name: &str) -> String {
    let text = match platform {
        Platform::Metal => include_str!("template/metal.yaml"),
        Platform::Qemu => include_str!("template/qemu.yaml"),
    };
    text.replace("CLUSTER_NAME", name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::file;

    #[test]
    fn templates_pass_the_check_as_they_are() {
        for platform in [Platform::Metal, Platform::Qemu] {
            let checked = file::read(&template(platform, "rack7"));
            assert_eq!(checked.problems, [], "{platform:?}");
            assert_eq!(checked.warnings, [], "{platform:?}");
            assert_eq!(checked.cluster.unwrap().metadata.name, "rack7");
        }
    }

    /// A comment that shows a field must show one that there is.
    #[test]
    fn the_fields_that_comments_show_are_fields() {
        for platform in [Platform::Metal, Platform::Qemu] {
            let text = template(platform, "rack7");
            let whole: Vec<String> = text
                .lines()
                .map(|line| {
                    let bare = line.trim_start();
                    let indent = " ".repeat(line.len() - bare.len());
                    bare.strip_prefix("#- ").map_or(line.to_owned(), |shown| format!("{indent}{shown}"))
                })
                .collect();
            let document =
                file::parse(&whole.join("\n")).unwrap_or_else(|problem| panic!("{platform:?}: {}", problem.message));
            let checked = file::check(document, file::Paths::Allowed);
            assert_eq!(checked.problems, [], "{platform:?}");
        }
    }
}
