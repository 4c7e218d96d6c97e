//! What may be shown of an assignment (pure).

use nkd_api::machine::Assignment;

/// Stands in place of a snippet. It is no snippet: who sends it back is refused, and nothing is lost.
const HIDDEN: &str = "(hidden: to read snippets takes the role operator)";

/// Takes out what only those may read who may write it: a snippet may hold passwords and keys.
pub fn hide_secrets(assignment: &mut Assignment) {
    for snippet in &mut assignment.snippets {
        HIDDEN.clone_into(snippet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hides_a_snippet_cannot_be_assigned() {
        assert!(crate::ignition::check_snippet(HIDDEN, "snippets[0]", "3.3.0").is_err());
    }
}
