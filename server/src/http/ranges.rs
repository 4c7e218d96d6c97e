//! Ranges of bytes that clients ask for (pure; RFC 9110, section 14.2).

use axum::http::{HeaderMap, header};

/// Takes a `Range` away that is to be ignored: one that does not read, and several at once, which a server may answer whole.
/// What serves files would refuse them.
pub(super) fn keep_one_range(headers: &mut HeaderMap) {
    let range = headers.get(header::RANGE).map(|value| value.to_str().unwrap_or_default());
    if range.is_some_and(|range| !is_one_range(range)) {
        headers.remove(header::RANGE);
    }
}

fn is_one_range(text: &str) -> bool {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else { return false };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    match (number(first), number(last)) {
        (Some(first), Some(last)) => first <= last,
        (Some(_), None) => last.is_empty(),
        (None, Some(_)) => first.is_empty(),
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_that_reads_is_kept() {
        for (range, kept) in [
            ("bytes=0-0", true),
            ("bytes=5-", true),
            ("bytes=-5", true),
            ("bytes=0-0,2-3", false),
            ("bytes=5-2", false),
            ("bytes=x", false),
            ("bytes=-", false),
            ("bytes=+1-2", false),
            ("items=0-1", false),
            ("bytes=99999999999999999999999-", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            keep_one_range(&mut headers);
            assert_eq!(headers.contains_key(header::RANGE), kept, "{range}");
        }
    }
}
