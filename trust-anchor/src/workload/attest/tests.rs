use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::UnixListener;

use super::*;

#[test]
fn what_proc_says_is_read_as_the_manual_has_it() {
    let stat = "4 (a) b (c)) S 1 4 4 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3";
    assert_eq!(start_time(stat), Some(987_654));
    assert_eq!(start_time("4 (a"), None);
    let text = "12:pids:/system.slice/a\n1:name=systemd:/\n0::/system.slice/a:b\n";
    assert_eq!(cgroups(text), ["/system.slice/a", "/system.slice/a:b"]);
}

#[tokio::test]
async fn a_caller_is_attested_as_the_process_that_it_is() {
    let (listener, directory) = listener();
    let _client = std::os::unix::net::UnixStream::connect(directory.path().join("s")).unwrap();
    let caller = Caller::of(&listener.accept().await.unwrap().0).unwrap();
    let attested = caller.attest(true).unwrap();
    let own = std::env::current_exe().unwrap();
    assert_eq!(attested.path.as_deref(), own.to_str());
    assert_eq!(attested.sha256.unwrap(), hex::sha256(&fs::read(own).unwrap()));
    let own = fs::metadata("/proc/self").unwrap();
    assert_eq!((attested.uid, attested.gid), (own.uid(), own.gid()));
}

fn listener() -> (UnixListener, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (UnixListener::bind(directory.path().join("s")).unwrap(), directory)
}

/// Ended with the test.
struct Python(Child);

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a script that gets the socket's path; its process is the first that connects.
fn python(directory: &tempfile::TempDir, script: &str) -> Python {
    let socket = directory.path().join("s");
    let mut command = Command::new("/usr/bin/python3");
    let child = command.arg0("client").arg("-c").arg(script).arg(socket).stdin(Stdio::piped()).spawn();
    Python(child.expect("python3 runs; install it with: apt-get install python3"))
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap();
}

#[tokio::test]
async fn a_child_that_goes_on_with_its_dead_parents_connection_is_nobody() {
    let (listener, directory) = listener();
    let script = "import os,socket,sys\ns=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n\
                  if os.fork()==0:\n sys.stdin.read();os._exit(0)\nos._exit(0)";
    let mut parent = python(&directory, script);
    let (stream, _) = listener.accept().await.unwrap();
    let caller = Caller::of(&stream);
    let _stdin = parent.0.stdin.take();
    parent.0.wait().unwrap();
    // Whether it was seen in time or not, there is nobody now; the child still holds the other end.
    assert_eq!(caller.and_then(|caller| caller.attest(false)), Err(Unattested::Gone));
    // And who comes later does not find the number of a dead process in the connection.
    assert_eq!(Caller::of(&stream).map(|_| ()), Err(Unattested::Gone));
}

#[tokio::test]
async fn a_process_that_starts_another_program_is_not_that_program() {
    let (listener, directory) = listener();
    // The socket is kept over exec, as an attacker would.
    let script = "import os,socket,sys\ns=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n\
                  os.set_inheritable(s.fileno(),True);os.read(0,1);os.execv('/bin/sleep',['sleep','60'])";
    let mut process = python(&directory, script);
    let (stream, _) = listener.accept().await.unwrap();
    let caller = Caller::of(&stream).unwrap();
    let before = caller.attest(false).unwrap();
    assert!(before.path.unwrap().contains("python"));
    drop(process.0.stdin.take());
    until(|| caller.still().is_err()).await;
    assert_eq!(caller.still(), Err(Unattested::Replaced));
    assert_eq!(caller.attest(false), Err(Unattested::Replaced));
    assert_eq!(caller.attest(true), Err(Unattested::Replaced));
}

#[tokio::test]
async fn without_a_pidfd_of_the_kernels_the_number_must_hold_still_and_be_of_the_same_user() {
    let pid = Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap();
    let uid = fs::metadata("/proc/self").unwrap().uid();
    assert!(by_number(pid, uid).is_ok());
    assert_eq!(by_number(pid, uid + 1).map(|_| ()), Err(Unattested::Gone));
}
