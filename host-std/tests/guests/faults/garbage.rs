//! A socket that others send garbage to, as a running guest sees it: not at all.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::serving::Disk;
use super::serving::garbage::Garbage;
use crate::guest::{Boot, Front, Guest, Machine};
use crate::say;

/// Fewer than wait to be accepted: a server has one client at a time.
const CLIENTS: usize = 60;

fn compare(front: Front, socket: &Path) -> Guest {
    let mut guest = Guest::boot(&Boot::new(Machine::Uml, front, socket));
    let bytes = 16 << 20;
    let output = guest.sh(&format!("agent compare /dev/{} {bytes} 16384 16 7", front.disk()));
    assert_eq!(output, format!("=COMPARED {bytes} 0"));
    guest
}

#[test]
fn garbage_before_a_guest_and_beside_it_changes_nothing() {
    let seed = fastrand::u64(..);
    say!("garbage from seed {seed}");
    let mut garbage = Garbage::new(fastrand::Rng::with_seed(seed));
    for front in Front::VHOST_USER {
        let disk = Disk::new(16 << 20);
        let mut server = disk.serve_as(front.name(), "", &[], None);
        let socket = server.socket().to_owned();
        for _ in 0..CLIENTS {
            garbage.client(&socket);
        }
        let mut guest = compare(front, &socket);
        guest.start(&format!("agent hammer /dev/{} 5 8 {seed}", front.disk()));
        let running = AtomicBool::new(true);
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..CLIENTS {
                    if running.load(Ordering::Relaxed) {
                        garbage.client(&socket);
                        std::thread::sleep(std::time::Duration::from_millis(50));
                    }
                }
            });
            let output = guest.finish(crate::guest::SOON);
            running.store(false, Ordering::Relaxed);
            output
        });
        assert!(output.status == 0 && output.text().ends_with("bad 0"), "{}", output.text());
        let dmesg = guest.kernel_log();
        assert!(!dmesg.contains("I/O error"), "{dmesg}");
        guest.power_off();
        // Those who waited come first, and are gone.
        compare(front, &socket).power_off();
        assert!(server.runs());
        say!("{:11}: garbage before, beside and after a guest: nothing of it is seen", front.name());
    }
}
