//! Pure: names that we make of others' names, none longer than a DNS label.

use hawser_api::ServiceName;
use hawser_api::names::LABEL_MAX;

/// What stands for the part that was cut off: a dash and eight digits.
const MARK: usize = 9;
/// Less of a name than this says nothing to people.
const LEAST: usize = 8;

/// `long`, cut and marked with a hash of the whole where it is longer than `room`: the same at every restart, and two
/// names that begin alike stay two. `None`: there is no room for even that.
pub fn fit(long: &str, room: usize) -> Option<String> {
    if long.len() <= room {
        return Some(long.to_owned());
    }
    let kept = room.checked_sub(MARK).filter(|kept| *kept >= LEAST)?;
    let kept = long.get(..kept)?.trim_end_matches('-');
    Some(format!("{kept}-{:08x}", fnv(long) >> 32))
}

/// `<long><suffix>` as a name, `long` cut where the two are too long: the suffix says what it is and stays whole.
pub fn with_suffix(long: &str, suffix: &str) -> Option<ServiceName> {
    format!("{}{suffix}", fit(long, LABEL_MAX.checked_sub(suffix.len())?)?).parse().ok()
}

/// FNV-1a: not for secrecy, only short, and the same in every version.
pub fn fnv(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_that_fits_is_left_as_it_is() {
        assert_eq!(fit("checkout", 8).as_deref(), Some("checkout"));
        assert_eq!(with_suffix("checkout", "-east").unwrap().as_str(), "checkout-east");
    }

    #[test]
    fn a_long_name_is_cut_the_same_way_in_every_version() {
        let long = "a-service-whose-name-somebody-wanted-to-be-a-whole-sentence";
        let cut = with_suffix(long, "-production-east").unwrap();
        assert_eq!(cut.as_str(), "a-service-whose-name-somebody-wanted-t-fdacb454-production-east");
        assert_eq!(fit(long, 16), None, "eight letters at least are left of a name");
    }

    proptest! {
        #[test]
        fn what_is_made_is_a_name_and_keeps_its_suffix(long in "[a-z]([-a-z0-9]{0,61}[a-z0-9])?", cluster in "[a-z]{1,40}") {
            let suffix = format!("-{cluster}");
            let name = with_suffix(&long, &suffix).unwrap();
            prop_assert!(name.as_str().len() <= LABEL_MAX && name.as_str().ends_with(&suffix));
        }

        #[test]
        fn names_that_begin_alike_stay_apart(a in "[a-z]{1,13}", b in "[a-z]{1,13}") {
            let long = |end: &str| format!("{}{end}", "x".repeat(50));
            prop_assert_eq!(fit(&long(&a), 40) == fit(&long(&b), 40), a == b);
        }
    }
}
