//! What the kernel says of each thread.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::process::ExitCode;
use std::sync::{Arc, Barrier};

use host_std::confine::{Role, thread};
use libtest_mimic::{Failed, Trial};

use crate::attempt::{self, Attempt, Identity, NOBODY};

pub(crate) fn trials() -> Vec<Trial> {
    let one = |identity: Identity| {
        let name = format!("every_thread_of_a_server_as_{identity:?}_says_that_it_is_confined");
        Trial::test(name.to_lowercase(), move || every_thread_is_confined(identity))
            .with_ignored_flag(identity.is_out_of_reach())
    };
    Identity::ALL.into_iter().map(one).collect()
}

/// In the confined process: a thread in each role, until standard input ends.
pub(crate) fn wait_in_every_role() -> ExitCode {
    let (ready, over) = (Arc::new(Barrier::new(Role::ALL.len())), Arc::new(Barrier::new(Role::ALL.len())));
    for role in Role::ALL.into_iter().filter(|role| *role != Role::Main) {
        let (ready, over) = (Arc::clone(&ready), Arc::clone(&over));
        let wait = move || {
            thread(role);
            ready.wait();
            over.wait();
        };
        std::thread::Builder::new().name(format!("{role:?}")).spawn(wait).expect("a thread");
    }
    thread(Role::Main);
    ready.wait();
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
    over.wait();
    ExitCode::SUCCESS
}

fn every_thread_is_confined(identity: Identity) -> Result<(), Failed> {
    let folder = attempt::folder();
    let attempt = Attempt { identity, role: Role::Main, name: "threads".into() };
    let mut process = attempt.start(folder.path());
    let mut line = String::new();
    let read = BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line);
    let threads = statuses(process.id());
    drop(process.stdin.take());
    let status = process.wait()?;
    read?;
    let threads = threads?;
    assert!(line == "ready\n" && status.success(), "{line} {status}");
    assert_eq!(threads.len(), Role::ALL.len());
    for thread in threads {
        let says = |key: &str, value: &str| {
            let line = thread.lines().find_map(|line| line.strip_prefix(key));
            assert_eq!(line.map(str::trim), Some(value), "{key} of {thread}");
        };
        says("NoNewPrivs:", "1");
        says("Seccomp:", "2");
        // Fatal, absent, base, and the role's.
        says("Seccomp_filters:", "4");
        for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
            says(set, "0000000000000000");
        }
        // A plain user cannot bound what execve would give, and need not.
        if identity != Identity::Plain && rustix::process::geteuid().is_root() {
            says("CapBnd:", "0000000000000000");
        }
        if identity != Identity::Same {
            let nobody = [NOBODY; 4].map(|id| id.to_string()).join("\t");
            says("Uid:", &nobody);
            says("Gid:", &nobody);
            says("Groups:", "");
        }
    }
    Ok(())
}

fn statuses(process: u32) -> io::Result<Vec<String>> {
    fs::read_dir(format!("/proc/{process}/task"))?
        .map(|task| fs::read_to_string(task?.path().join("status")))
        .collect()
}
