use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use super::head::HEAD;
use super::segments::LOG;
use super::*;

mod disk;
mod many;

fn entry(subject: &str) -> Entry {
    Entry { event: "issue".into(), subject: subject.into(), ..Entry::default() }
}

const KEEPING: Keeping = Keeping { segment: SEGMENT_MAX, life: Duration::from_secs(100) };

fn open(directory: &Path) -> Audit {
    open_with(directory, KEEPING)
}

fn open_with(directory: &Path, keeping: Keeping) -> Audit {
    Audit::open(&Kept::open(directory).unwrap(), keeping, UNIX_EPOCH + Duration::from_secs(1000), |_| ()).unwrap()
}

fn filled(count: u64) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let audit = open(directory.path());
    for n in 1..=count {
        assert_eq!(audit.append(entry(&format!("leaf {n}")), UNIX_EPOCH).unwrap(), n);
    }
    directory
}

fn broken(directory: &Path) -> Option<String> {
    read(directory, |_| ()).unwrap().broken
}

#[test]
fn the_chain_goes_on_over_restarts() {
    let directory = filled(3);
    assert_eq!(open(directory.path()).append(entry("leaf 4"), UNIX_EPOCH).unwrap(), 4);
    let mut seen = Vec::new();
    let reading = read(directory.path(), |line| seen.push(line.entry.subject.clone())).unwrap();
    assert_eq!((reading.entries, reading.broken), (4, None));
    assert_eq!(seen, ["leaf 1", "leaf 2", "leaf 3", "leaf 4"]);
}

#[test]
fn a_line_that_was_changed_removed_or_put_elsewhere_is_noticed() {
    let directory = filled(4);
    let path = directory.path().join(LOG);
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = whole.lines().collect();
    let with = |lines: &[&str]| fs::write(&path, lines.join("\n") + "\n").unwrap();
    for (what, lines) in [
        ("removed", vec![lines[0], lines[2], lines[3]]),
        ("swapped", vec![lines[0], lines[2], lines[1], lines[3]]),
        ("first gone", vec![lines[1], lines[2], lines[3]]),
    ] {
        with(&lines);
        assert!(broken(directory.path()).is_some(), "{what}");
    }
    fs::write(&path, whole.replace("leaf 2", "leaf 9")).unwrap();
    assert!(broken(directory.path()).unwrap().contains("line 3 does not follow line 2"));
    fs::write(&path, whole.replace("leaf 4", "leaf 9")).unwrap();
    assert!(broken(directory.path()).unwrap().contains("line 4 is not the one"), "the last line has no successor");
    fs::write(&path, &whole).unwrap();
    assert_eq!(broken(directory.path()), None);
}

#[test]
fn a_log_that_was_cut_short_or_deleted_is_noticed_also_without_its_head() {
    let directory = filled(4);
    let path = directory.path().join(LOG);
    let whole = fs::read_to_string(&path).unwrap();
    for keep in 0..4 {
        let cut: String = whole.lines().take(keep).map(|line| format!("{line}\n")).collect();
        fs::write(&path, cut).unwrap();
        assert!(broken(directory.path()).unwrap().contains("4 were written"), "{keep}");
    }
    fs::write(&path, &whole).unwrap();
    let head = fs::read(directory.path().join(HEAD)).unwrap();
    fs::remove_file(directory.path().join(HEAD)).unwrap();
    assert!(broken(directory.path()).unwrap().contains("audit.head is missing"));
    fs::write(directory.path().join(HEAD), String::from_utf8(head).unwrap().replace("\"seq\":4", "\"seq\":2")).unwrap();
    assert_eq!(broken(directory.path()), None, "the other copy of the head, of line 3, still counts");
}

#[test]
fn a_broken_log_is_set_aside_and_another_begins_with_saying_so() {
    let directory = filled(4);
    let path = directory.path().join(LOG);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.lines().next().unwrap().to_owned() + "\n").unwrap();
    let audit = open(directory.path());
    assert!(audit.trouble.as_ref().unwrap().contains("set aside"));
    let mut first = None;
    let reading = read(directory.path(), |line| first = first.take().or(Some(line.entry.event.clone()))).unwrap();
    assert_eq!((first.as_deref(), reading.broken), (Some("chain-broken"), None));
    let aside = directory.path().join("audit.broken-1000000");
    assert!(aside.join(LOG).exists() && aside.join(HEAD).exists(), "it is there to be looked at");
}

#[test]
fn what_a_crash_left_of_a_line_is_cut_off_and_lines_that_the_head_missed_count() {
    let directory = filled(2);
    let head = fs::read(directory.path().join(HEAD)).unwrap();
    open(directory.path()).append(entry("leaf 3"), UNIX_EPOCH).unwrap();
    // As if the process had died between the log and its head, and another in the middle of a line.
    fs::write(directory.path().join(HEAD), head).unwrap();
    let path = directory.path().join(LOG);
    let torn = fs::read_to_string(&path).unwrap() + "{\"seq\": 4, \"tim";
    fs::write(&path, torn).unwrap();
    let audit = open(directory.path());
    assert_eq!(audit.trouble, None);
    assert_eq!(audit.append(entry("leaf 4"), UNIX_EPOCH).unwrap(), 4);
    assert_eq!(broken(directory.path()), None);
}

#[test]
fn many_who_append_at_once_are_all_in_the_chain_once() {
    let directory = tempfile::tempdir().unwrap();
    let audit = open(directory.path());
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let audit = &audit;
            scope.spawn(move || {
                for n in 0..20 {
                    audit.append(entry(&format!("{thread}/{n}")), UNIX_EPOCH).unwrap();
                }
            });
        }
    });
    let mut seen = std::collections::BTreeSet::new();
    let reading = read(directory.path(), |line| assert!(seen.insert(line.entry.subject.clone()))).unwrap();
    assert_eq!((reading.entries, reading.broken, seen.len()), (320, None, 320));
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_the_chain_whole() {
    let directory = filled(1);
    let kept = Kept::open(directory.path()).unwrap();
    kept.stop_after(0);
    let audit = Audit::open(&kept, KEEPING, UNIX_EPOCH, |_| ()).unwrap();
    assert!(audit.append(entry("lost"), UNIX_EPOCH).is_err());
    drop(audit);
    assert_eq!(open(directory.path()).append(entry("leaf 2"), UNIX_EPOCH).unwrap(), 2);
    assert_eq!(broken(directory.path()), None);
}
