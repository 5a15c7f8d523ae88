//! A log of many files.

use super::super::segments;
use super::*;

/// Three or four lines a file.
const SHORT: Keeping = Keeping { segment: 500, ..KEEPING };

/// Lines of one second each, by a process that is started anew for each.
fn lines(directory: &Path, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        let now = UNIX_EPOCH + Duration::from_secs(n);
        assert_eq!(open_with(directory, SHORT).append(entry(&format!("leaf {n}")), now).unwrap(), n);
    }
}

fn files(directory: &Path) -> Vec<String> {
    segments::full(directory).unwrap().into_iter().map(segments::name).chain([LOG.to_owned()]).collect()
}

#[test]
fn the_chain_goes_on_from_file_to_file() {
    let directory = tempfile::tempdir().unwrap();
    lines(directory.path(), 1..=30);
    let (mut last, mut seen) = (String::new(), 0);
    for name in files(directory.path()) {
        let text = fs::read_to_string(directory.path().join(&name)).unwrap();
        let first: Line = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first.prev, last, "the first line of {name} bears the hash of the last line before it");
        assert!((500..800).contains(&text.len()) || name == LOG, "{} bytes in {name}", text.len());
        last = crate::hex::sha256(text.lines().last().unwrap().as_bytes());
        seen += text.lines().count();
    }
    let reading = read(directory.path(), |_| ()).unwrap();
    assert_eq!((reading.entries, reading.broken, seen), (30, None, 30));
    assert!(reading.full >= 6, "{}", reading.full);
}

#[test]
fn a_file_that_is_missing_cut_or_in_anothers_place_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    lines(root, 1..=30);
    let names = files(root);
    for (at, name) in names.iter().enumerate() {
        let path = root.join(name);
        let whole = fs::read_to_string(&path).unwrap();
        let (first, rest) = whole.split_once('\n').unwrap();
        let but_last = whole.trim_end().rsplit_once('\n').map_or("", |(but_last, _)| but_last);
        for (what, text) in [
            ("empty", String::new()),
            ("without its first line", rest.to_owned()),
            ("without its last line", if but_last.is_empty() { String::new() } else { format!("{but_last}\n") }),
            ("cut within its last line", whole[..whole.len() - 10].to_owned()),
            ("with its first line twice", format!("{first}\n{whole}")),
        ] {
            fs::write(&path, text).unwrap();
            assert!(broken(root).is_some(), "{name} {what}");
        }
        fs::write(&path, &whole).unwrap();
        let beside = root.join("beside");
        fs::rename(&path, &beside).unwrap();
        assert!(broken(root).is_some(), "{name} missing");
        // Whoever takes one out may put the others in its place.
        let later = &names[at + 1..];
        for pair in names[at..].windows(2).filter(|pair| pair[1] != LOG) {
            fs::rename(root.join(&pair[1]), root.join(&pair[0])).unwrap();
        }
        assert!(broken(root).is_some(), "{name} missing, and {later:?} moved up");
        for pair in names[at..].windows(2).filter(|pair| pair[1] != LOG).rev() {
            fs::rename(root.join(&pair[0]), root.join(&pair[1])).unwrap();
        }
        fs::rename(&beside, &path).unwrap();
        assert_eq!(broken(root), None);
    }
    let newest = &names[names.len() - 2];
    fs::rename(root.join(newest), root.join("beside")).unwrap();
    assert_eq!(broken(root), Some(format!("{newest} is missing")));
}

#[test]
fn a_start_reads_no_more_than_what_may_be_in_use_and_says_what_is_missing_before_that() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    lines(root, 1..=30);
    let start = |second: u64| {
        let mut seen = Vec::new();
        let keeping = Keeping { life: Duration::from_secs(10), ..SHORT };
        let now = UNIX_EPOCH + Duration::from_secs(second);
        let audit = Audit::open(&Kept::open(root).unwrap(), keeping, now, |line| seen.push(line.seq)).unwrap();
        (seen, audit)
    };
    let (seen, audit) = start(30);
    assert!(seen.contains(&20) && seen.contains(&30) && !seen.contains(&10), "{seen:?}");
    assert_eq!(audit.trouble, None);
    drop(audit);
    let (seen, _) = start(1_000_000);
    assert!(seen.len() < 10, "one full file, and the one that is written: {seen:?}");

    // What is not read is looked for all the same; the chain goes on, as it is whole from here.
    fs::remove_file(root.join(segments::name(1))).unwrap();
    let (_, audit) = start(30);
    assert!(audit.trouble.as_ref().unwrap().contains("missing: audit-000001.log"));
    assert_eq!(audit.append(entry("leaf 31"), UNIX_EPOCH).unwrap(), 31);
    assert_eq!(broken(root), Some("audit-000001.log is missing".to_owned()));
}

#[test]
fn a_broken_log_is_set_aside_with_all_its_files() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    lines(root, 1..=30);
    let names = files(root);
    let newest = root.join(&names[names.len() - 2]);
    let text = fs::read_to_string(&newest).unwrap();
    fs::write(&newest, text.replace("leaf", "tree")).unwrap();
    assert!(open_with(root, SHORT).trouble.is_some());
    assert_eq!((files(root), broken(root)), (vec![LOG.to_owned()], None));
    let aside = files(&root.join("audit.broken-1000000"));
    assert_eq!(aside, names);
}

#[test]
fn who_dies_at_any_step_has_lost_nothing_that_was_answered() {
    let (mut deaths, mut turns) = (0, 0);
    for steps in 0..80 {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::open(directory.path()).unwrap();
        kept.stop_after(steps);
        let audit = Audit::open(&kept, SHORT, UNIX_EPOCH, |_| ()).unwrap();
        let answered = (1..=12).take_while(|n| audit.append(entry(&format!("leaf {n}")), UNIX_EPOCH).is_ok()).count();
        drop(audit);
        deaths += u64::from(answered < 12);
        let reading = read(directory.path(), |_| ()).unwrap();
        turns += reading.full;
        assert_eq!(reading.broken, None, "{steps}");
        assert!(reading.entries >= answered as u64, "{steps}: {} of {answered}", reading.entries);
        let audit = open_with(directory.path(), SHORT);
        assert_eq!((audit.append(entry("next"), UNIX_EPOCH), audit.trouble.clone()), (Ok(reading.entries + 1), None));
        assert_eq!(broken(directory.path()), None, "{steps}");
    }
    assert!(deaths > 30 && turns > 30, "{deaths} deaths, {turns} turns");
}
