//! Processes that are killed, and disks that are full: each in a process of its own, which is this program again.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;

const SHORT: Keeping = Keeping { segment: 8 * 1024, ..KEEPING };

/// This program, as one of the tests below that are parts of others.
fn part(name: &str) -> [String; 5] {
    let this = std::env::current_exe().unwrap().display().to_string();
    [this, "--exact".into(), "--ignored".into(), "--nocapture".into(), format!("audit::tests::disk::{name}")]
}

#[test]
fn a_process_that_is_killed_has_lost_nothing_that_was_answered() {
    let directory = tempfile::tempdir().unwrap();
    let part = part("appends_until_it_is_killed");
    let mut before = 0;
    for round in 1..=12 {
        let mut command = Command::new(&part[0]);
        command.args(&part[1..]).current_dir(directory.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut answers = answers.filter_map(|line| line.parse::<u64>().ok());
        // At another moment each time; meanwhile eight threads write and wait for the disk.
        let seen = answers.by_ref().take(7 * round).max().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let answered = answers.max().unwrap_or_default().max(seen);
        let reading = read(directory.path(), |_| ()).unwrap();
        assert_eq!(reading.broken, None);
        assert!(answered > before && reading.entries >= answered, "{answered} answered, {} there", reading.entries);
        before = reading.entries;
    }
    assert!(read(directory.path(), |_| ()).unwrap().full > 3, "some died while a file was full");
    assert_eq!(open_with(directory.path(), SHORT).trouble, None);
}

#[test]
#[ignore = "a part of a_process_that_is_killed_has_lost_nothing_that_was_answered"]
fn appends_until_it_is_killed() {
    let audit = open_with(&std::env::current_dir().unwrap(), SHORT);
    assert_eq!(audit.trouble, None);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let audit = &audit;
            scope.spawn(move || {
                loop {
                    println!("{}", audit.append(entry(&format!("leaf of {thread}")), UNIX_EPOCH).unwrap());
                }
            });
        }
    });
}

#[test]
fn on_a_full_disk_nothing_is_answered_and_nothing_is_broken() {
    let directory = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=128k tmpfs \"$0\" && cd \"$0\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script]).arg(directory.path());
    let done = command.args(part("fills_its_disk")).output();
    let done = done.expect("a mount of its own: apt-get install util-linux");
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "needs user and mount namespaces: {said}");
}

#[test]
#[ignore = "a part of on_a_full_disk_nothing_is_answered_and_nothing_is_broken"]
fn fills_its_disk() {
    let directory = std::env::current_dir().unwrap();
    let ballast = |n: usize| directory.join(format!("ballast-{n}"));
    for n in 0..8 {
        fs::write(ballast(n), vec![0; 8 * 1024]).unwrap();
    }
    let mut audit = open_with(&directory, SHORT);
    let mut written = 0;
    for n in 0..8 {
        // Lines of another length each time: the disk is full in the middle of a line, and where a file should begin.
        let line = |written: u64| entry(&format!("leaf {written} {}", "x".repeat(300 * n)));
        let refused = loop {
            assert!(written < 10_000, "the disk is never full");
            match audit.append(line(written), UNIX_EPOCH) {
                Ok(_) => written += 1,
                Err(refused) => break refused,
            }
        };
        assert!(refused.contains("No space left"), "{refused}");
        assert!(audit.append(line(written), UNIX_EPOCH).is_err(), "it is full still");
        let reading = read(&directory, |_| ()).unwrap();
        assert_eq!((reading.entries, reading.broken), (written, None));
        if n % 2 == 0 {
            // A process that starts on a full disk reads and refuses, too.
            drop(audit);
            audit = open_with(&directory, SHORT);
            assert_eq!(audit.trouble, None);
        }
        fs::remove_file(ballast(n)).unwrap();
        assert_eq!(audit.append(line(written), UNIX_EPOCH).unwrap(), written + 1, "there is room again");
        written += 1;
    }
}
