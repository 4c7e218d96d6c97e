//! Names: those that the specification's own expressions describe, and no others.

use proptest::prelude::*;

use super::*;

fn repository(text: &str) -> Result<Repository, NameError> {
    text.parse()
}

#[test]
fn examples() {
    for good in ["a", "a/b", "library/busybox", "a__b", "a---b", "a.b_c-d/0", "registry.k8s.io/pause"] {
        assert_eq!(repository(good).unwrap().as_str(), good);
    }
    for bad in ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", ".", "..", "a/../b", "a:b", "ä"]
    {
        assert_eq!(repository(bad), Err(NameError::Repository(bad.into())));
    }
    assert!(repository(&"a".repeat(255)).is_ok() && repository(&"a".repeat(256)).is_err());
    for bad in ["", ".a", "-a", "a b", "a/b", "a\n", "ä"] {
        assert_eq!(bad.parse::<Reference>(), Err(NameError::Tag(bad.into())));
    }
    assert!("_".repeat(128).parse::<Reference>().is_ok() && "_".repeat(129).parse::<Reference>().is_err());
    let hex = "0123456789abcdef".repeat(4);
    assert!(digest(&format!("sha256:{hex}")).is_ok());
    for bad in
        [hex.clone(), format!("sha512:{hex}"), format!("sha256:{}", hex.to_uppercase()), format!("sha256:{hex}0")]
    {
        assert!(digest(&bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn what_the_specification_describes_is_a_name(
        text in "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}(/[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}){0,4}",
        tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}",
        bytes: [u8; 32],
    ) {
        prop_assert_eq!(repository(&text).unwrap().to_string(), text);
        prop_assert_eq!(tag.parse::<Reference>().unwrap().to_string(), tag);
        let written = Reference::Digest(Sha256Digest(bytes));
        prop_assert_eq!(written.to_string().parse(), Ok(written));
    }

    #[test]
    fn any_text_is_taken_whole_or_refused(text in "[a-z0-9A-Z._/:%\\\\ -]{0,40}|\\PC{0,20}") {
        if let Ok(name) = repository(&text) {
            prop_assert_eq!(name.as_str(), &text);
            let safe = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['%', '\\', ':']);
            prop_assert!(text.split('/').all(safe));
        }
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string(), text);
        }
    }
}
