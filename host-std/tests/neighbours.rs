//! Several devices of one process: what one client does costs no other its disk.

mod serving;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use host_std::testing::client::{Blk, Options};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serving::Server;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// Two disks, `a` and `b`.
fn serve(dir: &Path) -> Server {
    let mut config = String::new();
    for name in ["a", "b"] {
        let path = |what: &str| dir.join(format!("{name}.{what}")).display().to_string();
        config += &format!(
            "[[device]]\nname = \"{name}\"\ntype = \"virtio-blk\"\nsocket = \"{}\"\n[[device.image]]\npath = \"{}\"\nsize = \"1M\"\n",
            path("sock"),
            path("img")
        );
    }
    std::fs::write(dir.join("config"), config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.args(["serve", "--quiet", "--config"]).arg(dir.join("config")).env("BLK_HOST_LOG", "off");
    Server::start(&mut command, &dir.join("a.sock")).unwrap()
}

fn connect(dir: &Path, name: &str, timeout: Duration) -> Result<Blk, host_std::testing::client::ClientError> {
    Blk::connect(dir.join(format!("{name}.sock")), Options { timeout, ..Options::default() })
}

/// Descriptors of a process that are open.
fn descriptors(process: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count() as u64
}

/// accept() takes the last descriptor, and what the client needs beyond it is not to be had; or there is none for accept().
#[test]
fn a_client_that_leaves_no_descriptors_ends_nobody_s_device() {
    let dir = TempDir::new().unwrap();
    let mut server = serve(dir.path());
    let process = Pid::from_raw(server.id() as i32);
    let mut neighbour = connect(dir.path(), "a", PATIENCE).unwrap();
    neighbour.write(0, &[1; 512]).unwrap();
    let Rlimit { current: before, maximum } = rustix::process::getrlimit(Resource::Nofile);
    let limit = |current| prlimit(process, Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let open = descriptors(server.id());
    for spare in [1, 0] {
        let deadline = Instant::now() + PATIENCE;
        while descriptors(server.id()) != open {
            assert!(Instant::now() < deadline, "{} descriptors, and {open} before", descriptors(server.id()));
            std::thread::sleep(Duration::from_millis(10));
        }
        limit(Some(open + spare));
        assert!(
            connect(dir.path(), "b", Duration::from_millis(500)).is_err(),
            "there is no descriptor for it"
        );
        assert!(server.runs(), "it ended the process");
        neighbour.flush().unwrap();
        limit(before);
        let mut next = loop {
            match connect(dir.path(), "b", Duration::from_secs(2)) {
                Ok(next) => break next,
                Err(error) => {
                    assert!(Instant::now() < deadline, "spare {spare}: the device is gone: {error}")
                }
            }
        };
        next.flush().unwrap();
    }
    drop(neighbour);
    kill_process(process.unwrap(), Signal::TERM).unwrap();
    assert!(server.wait().success());
}
