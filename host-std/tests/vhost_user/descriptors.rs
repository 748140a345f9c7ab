//! What a client hands over to be woken by: an interrupt is never lost, and nothing that the client does with its descriptors
//! holds the device up.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use host_std::testing::client::Request;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _, VhostUserProtocolFeatures};
use vmm_sys_util::eventfd::EventFd;

use super::*;

/// A descriptor of the client's, and the copy that it hands over.
fn pair(flags: EventfdFlags) -> (OwnedFd, EventFd) {
    let ours = eventfd(0, flags).unwrap();
    let handed_over = as_eventfd(ours.try_clone().unwrap());
    (ours, handed_over)
}

fn signalled(call: &OwnedFd) -> bool {
    let patience = Timespec::try_from(PATIENCE).unwrap();
    matches!(poll(&mut [PollFd::new(call, PollFlags::IN)], Some(&patience)), Ok(1))
}

fn as_eventfd(fd: impl Into<OwnedFd>) -> EventFd {
    // SAFETY: the descriptor is open, and nobody else's.
    unsafe { EventFd::from_raw_fd(fd.into().into_raw_fd()) }
}

/// A copy of the client's end of its connection.
fn own_end(frontend: &Frontend) -> OwnedFd {
    // SAFETY: the descriptor is the frontend's, which is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(frontend.as_raw_fd()) };
    fd.try_clone_to_owned().unwrap()
}

/// A server that was killed between the used index and the interrupt has left a guest that waits for the interrupt.
#[test]
fn a_ring_that_starts_interrupts_its_guest() {
    let disk = Disk::new();
    let _served = disk.serve(1, "");
    let mut guest = disk.connect(options(1));
    guest.session_mut().stop_ring(0).unwrap();
    let (call, handed_over) = pair(EventfdFlags::NONBLOCK);
    guest.session_mut().message(|frontend| frontend.set_vring_call(0, &handed_over)).unwrap();
    let (_kick, handed_over) = pair(EventfdFlags::NONBLOCK);
    guest.session_mut().message(|frontend| frontend.set_vring_kick(0, &handed_over)).unwrap();
    assert!(signalled(&call));
}

#[test]
fn a_new_call_descriptor_is_signalled() {
    let disk = Disk::new();
    let _served = disk.serve(1, "");
    let mut guest = disk.connect(options(1));
    let (call, handed_over) = pair(EventfdFlags::NONBLOCK);
    guest.session_mut().message(|frontend| frontend.set_vring_call(0, &handed_over)).unwrap();
    assert!(signalled(&call));
}

/// A full eventfd that blocks, as a client that never looks at it may leave it: the device goes on, also without it.
#[test]
fn a_full_call_descriptor_costs_no_request_and_can_be_replaced() {
    let disk = Disk::new();
    let _served = disk.serve(1, "");
    let mut guest = disk.connect(options(1));
    let (call, handed_over) = pair(EventfdFlags::empty());
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    guest.session_mut().message(|frontend| frontend.set_vring_call(0, &handed_over)).unwrap();
    let answered = |guest: &mut Blk| {
        guest.submit(0, Request::Flush).unwrap();
        guest.session_mut().kick(0).unwrap();
        // Nobody is told of it.
        until("it is answered", || take_done(guest, 0) == 1);
    };
    (0..2).for_each(|_| answered(&mut guest));
    let (next, handed_over) = pair(EventfdFlags::NONBLOCK);
    guest.session_mut().message(|frontend| frontend.set_vring_call(0, &handed_over)).unwrap();
    assert!(signalled(&next));
    answered(&mut guest);
}

/// The client's own end of the connection above all: with a copy of it in our hands, its closing would not be seen.
#[test]
fn a_socket_to_be_woken_by_ends_the_client() {
    let set: [fn(&mut Frontend, &EventFd) -> vhost::Result<()>; 3] = [
        |frontend, fd| frontend.set_vring_kick(0, fd),
        |frontend, fd| frontend.set_vring_call(0, fd),
        |frontend, fd| frontend.set_vring_err(0, fd),
    ];
    for (set, own) in set.into_iter().flat_map(|set| [(set, true), (set, false)]) {
        let disk = Disk::new();
        let _served = disk.serve(1, "");
        let mut guest = disk.connect(options(1).without_protocol(VhostUserProtocolFeatures::REPLY_ACK));
        let fd = match own {
            true => as_eventfd(guest.session_mut().message(|frontend| Ok(own_end(frontend))).unwrap()),
            false => as_eventfd(UnixStream::connect(disk.path("socket")).unwrap()),
        };
        let _ = guest.session_mut().message(|frontend| set(frontend, &fd));
        assert!(
            guest.session_mut().message(|frontend| frontend.get_queue_num()).is_err(),
            "it is still there"
        );
        drop(fd);
        disk.connect(options(1)).flush().unwrap();
    }
}

/// The guest makes the device's descriptor full, and a call that waits, whenever the device has undone that.
#[test]
fn a_full_call_descriptor_that_waits_holds_up_neither_a_stop_nor_the_next_client() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    let mut guest = disk.connect(options(1));
    let (call, handed_over) = pair(EventfdFlags::empty());
    guest.session_mut().message(|frontend| frontend.set_vring_call(0, &handed_over)).unwrap();
    until("it is signalled", || rustix::io::read(&call, &mut [0; 8]) == Ok(8));
    assert!(fcntl_getfl(&call).unwrap().contains(OFlags::NONBLOCK));
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(&call, OFlags::empty()).unwrap();
    // The one that is asked for when the read ends waits in the descriptor.
    guest.submit(0, Request::Read { sector: 0, bytes: 4096 }).unwrap();
    guest.session_mut().kick(0).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    served.controller.pause();
    served.controller.resume();
    guest.session_mut().disconnect();
    disk.connect(options(1)).flush().unwrap();
    drop(served);
    assert!(begun.elapsed() < PATIENCE, "it took {:?}", begun.elapsed());
}
