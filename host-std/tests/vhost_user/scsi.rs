//! virtio-scsi: what a successor has to know of a unit.

use blk_core::memory::GuestMemory as _;
use blk_core::units::GuestAddr;
use host_std::client::VhostUser;
use host_std::server::{Lun, ScsiOptions};
use vhost::VringConfigData;
use vhost::vhost_user::VhostUserFrontend as _;
use vm_memory::{GuestAddress, GuestMemoryBackend as _};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

/// Behind the control queue, the event queue.
const REQUEST: usize = 2;
const SIZE: u16 = 8;
// Where the ring lies, and one command: buffers of the control queue, which sends nothing.
const DESCRIPTORS: u64 = 0x4001_0000;
const AVAILABLE: u64 = 0x4001_1000;
const USED: u64 = 0x4001_2000;
const HEADER: u64 = 0x4001_3000;
const RESPONSE: u64 = 0x4001_4000;
/// virtio_scsi_req_cmd and virtio_scsi_cmd_resp (VIRTIO 1.3, 5.6.6.1), with a CDB of 32 bytes and 96 of sense data.
const HEADER_BYTES: usize = 51;
const RESPONSE_BYTES: u32 = 108;

/// The least of a driver: one command at a time.
struct Host {
    session: VhostUser,
    kick: EventFd,
    available: u16,
}

impl Host {
    fn connect(disk: &Disk) -> Self {
        let mut session = VhostUser::connect(disk.path("socket"), options(3)).unwrap();
        session.stop_ring(REQUEST as u16).unwrap();
        let user = |addr| {
            let host = session.memory().mapping().get_host_address(GuestAddress(addr));
            host.unwrap() as u64
        };
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: user(DESCRIPTORS),
            used_ring_addr: user(USED),
            avail_ring_addr: user(AVAILABLE),
            log_addr: None,
        };
        let (kick, call) = (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
        let started = session.message(|frontend| {
            frontend.set_vring_num(REQUEST, SIZE)?;
            frontend.set_vring_base(REQUEST, 0)?;
            frontend.set_vring_addr(REQUEST, &addresses)?;
            frontend.set_vring_call(REQUEST, &call)?;
            frontend.set_vring_kick(REQUEST, &kick)?;
            frontend.set_vring_enable(REQUEST, true)
        });
        started.unwrap();
        Self { session, kick, available: 0 }
    }

    /// Has target 0, unit 0 do a command, and returns its SCSI status.
    fn command(&mut self, cdb: &[u8]) -> u8 {
        let memory = self.session.memory().clone();
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&[1, 0, 0x40, 0]);
        header[19..19 + cdb.len()].copy_from_slice(cdb);
        memory.write(GuestAddr(HEADER), &header).unwrap();
        let mut descriptors = [0; 32];
        let parts = [(HEADER, HEADER_BYTES as u32, 1, 1), (RESPONSE, RESPONSE_BYTES, 2, 0_u16)];
        for (entry, (addr, len, flags, next)) in descriptors.chunks_exact_mut(16).zip(parts) {
            entry[..8].copy_from_slice(&u64::to_le_bytes(addr));
            entry[8..12].copy_from_slice(&u32::to_le_bytes(len));
            entry[12..14].copy_from_slice(&u16::to_le_bytes(flags));
            entry[14..].copy_from_slice(&next.to_le_bytes());
        }
        memory.write(GuestAddr(DESCRIPTORS), &descriptors).unwrap();
        // Every entry of the available ring is 0: the one chain there is.
        self.available += 1;
        memory.store_u16_release(GuestAddr(AVAILABLE + 2), self.available).unwrap();
        self.kick.write(1).unwrap();
        until("the command is returned", || {
            memory.load_u16_acquire(GuestAddr(USED + 2)).unwrap() == self.available
        });
        let mut response = [0; 12];
        memory.read(GuestAddr(RESPONSE), &mut response).unwrap();
        assert_eq!(response[11], 0, "VIRTIO_SCSI_S_OK");
        response[10]
    }
}

const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const TEST_UNIT_READY: [u8; 6] = [0; 6];
const SYNCHRONIZE_CACHE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn serve(disk: &Disk, faults: &str) -> Served {
    disk.serve_with(faults, |backend| {
        let config = scsi_model::Config::new("TEST", "DISK", "1", "");
        let luns = vec![Lun { target: 0, lun: 0, config, backend }];
        Server::scsi(&ScsiOptions::default(), luns).unwrap()
    })
}

#[test]
fn the_latch_of_a_unit_outlives_a_server() {
    let disk = Disk::new();
    let served = serve(&disk, "flush@1:eio");
    let mut host = Host::connect(&disk);
    // It was just switched on, and says so.
    until("it is ready", || host.command(&TEST_UNIT_READY) == GOOD);
    assert!(served.backend.latched().is_none());
    assert_eq!(host.command(&SYNCHRONIZE_CACHE), CHECK_CONDITION);
    served.kill();
    let served = serve(&disk, "");
    assert!(served.backend.latched().is_none(), "nobody has told it yet");
    host.session.reconnect().unwrap();
    assert!(served.backend.latched().is_some());
    drop(host);
    // It stays so for the next guest.
    let mut host = Host::connect(&disk);
    until("it is ready", || host.command(&TEST_UNIT_READY) == GOOD);
    assert_eq!(host.command(&SYNCHRONIZE_CACHE), CHECK_CONDITION);
}
