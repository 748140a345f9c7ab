//! Memory that a client takes away from under the device: that client is let go, and the next one is served.

use std::sync::Arc;

use rustix::fs::ftruncate;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::*;

/// Cuts all memory of a guest short, its rings with it.
fn cut_short(guest: &Blk) {
    for region in guest.session().memory().mapping().iter() {
        let file = Arc::clone(region.file_offset().unwrap().arc());
        ftruncate(&*file, 0).unwrap();
    }
}

#[test]
fn a_file_that_is_cut_short_ends_its_client_and_nobody_else() {
    let (disk, other) = (Disk::new(), Disk::new());
    let (served, _other_served) = (disk.serve(1, ""), other.serve(1, ""));
    let mut bystander = other.connect(options(1));
    let mut guest = disk.connect(options(1));
    guest.write(0, &contents(0, 1)).unwrap();
    cut_short(&guest);
    // It looks at its rings.
    guest.session_mut().kick_always(0).unwrap();
    until("the client is let go", || !served.controller.stats().connected);
    bystander.write(0, &contents(0, 2)).unwrap();
    bystander.flush().unwrap();
    drop(guest);
    let mut next = disk.connect(options(1));
    check(&mut next, 0, 0..1, 1);
    next.flush().unwrap();
}

#[test]
fn an_in_flight_region_that_is_cut_short_ends_its_client() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    let mut guest = disk.connect(options(1));
    // The server's own regions are sealed; the client's may be any file.
    let region = guest.session_mut().replace_in_flight_file().unwrap();
    guest.write(0, &contents(0, 1)).unwrap();
    ftruncate(&region, 0).unwrap();
    let _ = guest.submit(0, Request::Flush).unwrap();
    guest.session_mut().kick(0).unwrap();
    until("the client is let go", || !served.controller.stats().connected);
    check(&mut disk.connect(options(1)), 0, 0..1, 1);
}
