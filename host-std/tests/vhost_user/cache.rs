//! What a client knows of the cache, and what its writes mean accordingly.

use host_std::testing::client::ClientError;
use vhost::vhost_user::VhostUserProtocolFeatures;
use virtio_blk_model::wire::Features;

use super::*;

pub(super) fn a_client_that_never_read_the_setting_is_served_write_through() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    let mut guest = disk.connect(options(1).without_protocol(VhostUserProtocolFeatures::CONFIG));
    assert!(guest.has(Features::FLUSH) && guest.has(Features::CONFIG_WCE));
    for block in 0..8 {
        let before = served.durable();
        guest.write(block * BLOCK_SECTORS, &contents(block, 1)).unwrap();
        assert!(served.durable() > before, "block {block} was acknowledged and is not stable");
    }
}

#[test]
fn unknown_means_write_through() {
    a_client_that_never_read_the_setting_is_served_write_through();
}

#[test]
fn what_one_client_has_read_is_not_known_to_the_next() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    drop(disk.connect(options(1)));
    let mut guest = disk.connect(options(1).without_protocol(VhostUserProtocolFeatures::CONFIG));
    guest.write(0, &contents(0, 1)).unwrap();
    assert_ne!(served.durable(), 0);
}

#[test]
fn a_client_that_has_read_of_a_cache_flushes() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    let mut guest = disk.connect(options(1));
    assert_eq!(guest.read_config().unwrap().writeback, 1);
    let before = served.durable();
    for block in 0..8 {
        guest.write(block * BLOCK_SECTORS, &contents(block, 1)).unwrap();
    }
    assert_eq!(served.durable(), before, "no write has to be stable");
    guest.flush().unwrap();
    assert_eq!(served.durable(), before + 1);
}

#[test]
fn a_driver_that_does_not_flush_is_served_write_through_whatever_it_read() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    let features = Features::FLUSH | Features::CONFIG_WCE;
    let mut guest = disk.connect(options(1).without(features.bits()));
    let before = served.durable();
    guest.write(0, &contents(0, 1)).unwrap();
    assert!(served.durable() > before);
}

#[test]
fn only_the_driver_changes_the_setting() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    disk.connect(options(1)).set_writeback(false).unwrap();
    // Another client, a driver that starts anew, and one that negotiates less.
    let mut guest = disk.connect(options(1));
    guest.session_mut().restart_driver().unwrap();
    drop(guest);
    drop(disk.connect(options(1).without(Features::CONFIG_WCE.bits())));
    let mut guest = disk.connect(options(1));
    assert_eq!(guest.read_config().unwrap().writeback, 0);
    let before = served.durable();
    guest.write(0, &contents(0, 1)).unwrap();
    assert!(served.durable() > before);
    guest.set_writeback(true).unwrap();
    assert_eq!(guest.read_config().unwrap().writeback, 1);
    let before = served.durable();
    guest.write(0, &contents(0, 2)).unwrap();
    assert_eq!(served.durable(), before);
}

pub(super) fn turning_the_cache_off_drains_and_flushes() {
    let disk = Disk::new();
    let served = disk.serve(2, "write:50ms");
    let mut guest = disk.connect(options(2));
    for queue in 0..2 {
        let first = u64::from(queue) * 8;
        submit_writes(&mut guest, queue, first..first + 8, 1);
        served.until_in_flight(queue.into(), 8);
    }
    let before = served.durable();
    guest.set_writeback(false).unwrap();
    assert_eq!((take_done(&mut guest, 0), take_done(&mut guest, 1)), (8, 8));
    assert!(served.durable() > before, "what was acknowledged before is not stable");
    let before = served.durable();
    guest.write(0, &contents(0, 2)).unwrap();
    assert!(served.durable() > before, "the cache is off");
}

#[test]
fn the_cache_is_off_once_all_is_stable() {
    turning_the_cache_off_drains_and_flushes();
}

#[test]
fn a_cache_whose_flush_fails_stays_on() {
    let disk = Disk::new();
    let served = disk.serve(1, "flush@1:eio");
    let mut guest = disk.connect(options(1));
    guest.write(0, &contents(0, 1)).unwrap();
    let refused = guest.set_writeback(false);
    assert!(matches!(refused, Err(ClientError::Vhost(_) | ClientError::Message(_))), "{refused:?}");
    assert_eq!(guest.read_config().unwrap().writeback, 1);
    assert!(served.backend.latched().is_some());
    assert!(matches!(guest.flush(), Err(ClientError::Failed { status: 1, .. })));
    check(&mut guest, 0, 0..1, 1);
}
