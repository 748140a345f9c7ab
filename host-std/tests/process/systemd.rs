//! The units for systemd start what they say.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use host_std::testing::client::{Blk, Options};
use rustix::io::FdFlags;

use crate::{PATIENCE, Server, blk_host, folder, text};

const SERVICE: &str = include_str!("../../systemd/blk-host@.service");
const SOCKET: &str = include_str!("../../systemd/blk-host@.socket");
const EXAMPLE: &str = include_str!("../../systemd/example.toml");

/// The arguments of the service's command, for the instance `example`.
fn arguments(config: &Path) -> Vec<String> {
    let command = SERVICE.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/blk-host ")).unwrap();
    let arguments = command.replace("%i", "example");
    assert!(arguments.contains("/etc/blk-host/example.toml"), "{arguments}");
    let arguments = arguments.replace("/etc/blk-host/example.toml", config.to_str().unwrap());
    arguments.split(' ').map(str::to_owned).collect()
}

/// As systemd does it: the socket is descriptor 3, and two variables say so.
#[test]
fn the_services_command_serves_the_socket_of_its_unit_with_the_example() {
    assert!(SOCKET.contains("\nListenStream="));
    let dir = folder();
    let config = EXAMPLE
        .lines()
        .filter(|line| !line.starts_with("socket"))
        .map(|line| {
            line.replace("/run/blk-host/example/control", dir.path().join("control").to_str().unwrap())
        })
        .map(|line| line.replace("/var/lib/blk-host/example.img", dir.path().join("image").to_str().unwrap()))
        .map(|line| line.replace("10G", "16M") + "\n")
        .collect::<String>();
    let path = dir.path().join("example.toml");
    fs::write(&path, config).unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    rustix::io::fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let mut command = std::process::Command::new("bash");
    command.stdin(Stdio::null()).env_remove("BLK_HOST_LOG").args([
        "-c",
        &format!(
            "exec 3<&{}; LISTEN_PID=$$ LISTEN_FDS=1 exec {} {}",
            listener.as_fd().as_raw_fd(),
            env!("CARGO_BIN_EXE_blk-host"),
            arguments(&path).join(" ")
        ),
    ]);
    let mut server = Server::start(dir, command.stderr(Stdio::null()));
    drop(listener);
    let options = Options { timeout: PATIENCE, ..Options::default() };
    let mut client = Blk::connect(server.path("s"), options).unwrap();
    client.write(0, &[7; 4096]).unwrap();
    client.flush().unwrap();
    drop(client);
    assert_eq!(server.report()["devices"][0]["name"], "root");
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(fs::read(server.path("image")).unwrap()[..4096], [7; 4096]);
    assert!(server.path("s").exists(), "a supervisor's socket is not ours to remove");
}

#[test]
fn the_example_is_a_configuration() {
    let dir = folder();
    let path = dir.path().join("example.toml");
    fs::write(&path, EXAMPLE).unwrap();
    let output = blk_host().args(arguments(&path)).arg("--print-attach").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("/run/blk-host/example/root.sock"));
}

#[test]
#[ignore = "needs systemd-analyze, of the package systemd: cargo test --test process -- --ignored systemd"]
fn systemd_understands_the_units() {
    let dir = folder();
    // It wants the program to be there.
    symlink(env!("CARGO_BIN_EXE_blk-host"), dir.path().join("blk-host")).unwrap();
    let program = dir.path().join("blk-host");
    let unit = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text.replace("/usr/bin/blk-host", program.to_str().unwrap())).unwrap();
        path
    };
    let mut command = std::process::Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]);
    command.arg(unit("blk-host@example.service", SERVICE)).arg(unit("blk-host@example.socket", SOCKET));
    let output = command.output().expect("systemd-analyze");
    let said = text(&output.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("blk-host@")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}
