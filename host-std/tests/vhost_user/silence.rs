//! Clients that say nothing, or half of something: the next one is served.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use super::*;

const SHORT: Duration = Duration::from_millis(300);

fn serve_impatiently(disk: &Disk) -> Served {
    let patient = |backend| Server::blk(&BlkOptions::default(), backend).unwrap();
    disk.serve_with("", |backend| patient(backend).with_client_patience(SHORT))
}

#[test]
fn a_client_that_says_nothing_or_half_a_message_is_let_go() {
    let disk = Disk::new();
    let served = serve_impatiently(&disk);
    // GET_FEATURES, half of its header; SET_FEATURES without its body.
    let beginnings: [&[u8]; 3] = [&[], &[1, 0, 0, 0, 1, 0], &[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]];
    for (clients, beginning) in (1..).zip(beginnings) {
        let mut silent = UnixStream::connect(disk.path("socket")).unwrap();
        silent.write_all(beginning).unwrap();
        until("the client is there", || served.controller.stats().clients == 2 * clients - 1);
        disk.connect(options(1)).flush().unwrap();
        assert_eq!(served.controller.stats().clients, 2 * clients);
    }
}

#[test]
fn a_client_that_has_said_enough_may_be_silent() {
    let disk = Disk::new();
    let served = serve_impatiently(&disk);
    let mut guest = disk.connect(options(1));
    std::thread::sleep(SHORT * 3);
    guest.flush().unwrap();
    assert_eq!(served.controller.stats().clients, 1);
}

#[test]
fn an_operator_lets_a_client_go() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    let silent = UnixStream::connect(disk.path("socket")).unwrap();
    until("the client is there", || served.controller.stats().connected);
    served.controller.disconnect();
    disk.connect(options(1)).flush().unwrap();
    drop(silent);
}
