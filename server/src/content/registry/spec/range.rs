//! The range of a chunk, `0-1023`: the specification's own form of Content-Range, without a unit.

/// First and last byte.
#[must_use]
pub fn chunk(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (first, last) = (number(first)?, number(last)?);
    // A last byte that has no successor would have no length.
    (first <= last && last < u64::MAX).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn examples() {
        assert_eq!(chunk("0-0"), Some((0, 0)));
        assert_eq!(chunk("5-9"), Some((5, 9)));
        let most = format!("0-{}", u64::MAX);
        for bad in ["", "-", "1-", "-1", "2-1", "+1-2", "1-+2", "bytes 0-1/2", "0-1-2", &most] {
            assert_eq!(chunk(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(first in 0..1_u64 << 40, more in 0..1_u64 << 40) {
            prop_assert_eq!(chunk(&format!("{first}-{}", first + more)), Some((first, first + more)));
        }
    }
}
