//! Names of images.

use proptest::prelude::*;

use super::*;

#[test]
fn names_are_file_names() {
    for name in ["nestos-24.03-LTS-20240903.0-x86_64", "a", "1+2~3"] {
        check_name(name).unwrap();
    }
    for name in ["", ".x", "-x", "a/b", "..", "a b", "ä", &"x".repeat(129)] {
        assert!(check_name(name).is_err(), "{name}");
    }
}

proptest! {
    #[test]
    fn a_name_never_leaves_the_folder(name in "\\PC*") {
        if check_name(&name).is_ok() {
            let path = Path::new("/d").join(&name);
            prop_assert_eq!(path.parent(), Some(Path::new("/d")));
        }
    }
}
