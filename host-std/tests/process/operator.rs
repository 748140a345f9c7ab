//! An operator is answered at once, whatever clients and commands do.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::{PATIENCE, Server, blk_host, folder, text, wait_for};

/// Below the time for which the lock of an image is waited for.
const AT_ONCE: Duration = Duration::from_secs(6);

#[test]
fn stats_are_there_while_a_command_waits_and_it_says_what_for() {
    let holder = Server::logged(&["image"]);
    let more = holder.path("image");
    let server = {
        let dir = folder();
        let mut command = blk_host();
        command.current_dir(dir.path()).stderr(Stdio::null());
        command.args([
            "serve",
            "--quiet",
            "--device",
            "virtio-scsi",
            "--socket",
            "s",
            "--control",
            "control",
        ]);
        command.arg("--hotplug-folder").arg(more.parent().unwrap());
        Server::start(dir, command.args(["--image", "image"]))
    };
    let mut operator = BufReader::new(UnixStream::connect(server.path("control")).unwrap());
    operator.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    let request = serde_json::json!({ "command": "hotplug", "image": more });
    operator.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    assert_eq!(server.report()["devices"][0]["images"].as_array().unwrap().len(), 1);
    assert!(began.elapsed() < AT_ONCE, "stats waited for {:?}", began.elapsed());
    let mut lines = operator.lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    assert!(first.contains("\"waiting\"") && first.contains("disk0"), "{first}");
    let last = lines.find(|line| !line.contains("\"waiting\"")).unwrap();
    assert!(last.contains("in use by another program"), "{last}");
}

#[test]
fn a_command_that_waits_tells_so_on_standard_error_and_ends_well() {
    let server = Server::logged(&["image", "--fault", "flush:3s;seed=1"]);
    server.client().write(0, &[7; 4096]).unwrap();
    let output = server.ctl(&["--json", "drain"]);
    assert_eq!((output.status.code(), text(&output.stdout).trim()), (Some(0), "{}"));
    assert!(text(&output.stderr).contains("disk0: waits for"), "{}", text(&output.stderr));
}

#[test]
fn connections_that_do_nothing_keep_no_operator_out() {
    let server = Server::logged(&["image"]);
    let mut idle = Vec::new();
    // More than once: whoever has asked before gives a place back, a moment later.
    for more in [20, 2, 2] {
        let connected = (0..more).map(|_| UnixStream::connect(server.path("control")).unwrap());
        idle.extend(connected);
        // Half a line is nothing, either.
        idle.iter_mut().for_each(|stream| drop(stream.write_all(b"{\"command\":")));
        assert_eq!(server.report()["devices"][0]["state"], "running");
    }
}

#[test]
fn a_client_is_let_go_by_command_and_the_next_one_served() {
    let server = Server::logged(&["image"]);
    let client = server.client();
    let connected = || server.report()["devices"][0]["server"]["connected"] == true;
    assert!(connected());
    assert_eq!(server.ctl(&["disconnect"]).status.code(), Some(0));
    wait_for("its end", || (!connected()).then_some(()));
    server.client().write(0, &[7; 4096]).unwrap();
    drop(client);
}
