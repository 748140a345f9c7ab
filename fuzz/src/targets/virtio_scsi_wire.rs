//! virtio-scsi's layouts: any request, control request and event buffer, of any sizes, on a quiet controller.

use blk_core::bus::Quiet as _;
use blk_core::units::GuestAddr;
use blk_core::virtq::{Buffer, RingFeatures};
use scsi_model::Config as Identity;
use scsi_model::front::virtio_scsi::{Address, CONTROL, Config, Controller, EVENT, Policy, REQUEST};

use crate::disk::{Disk, Kind};
use crate::memory::Memory;
use crate::program::Seed as _;
use crate::record;
use crate::ring::{Layout, Ring};

const RING_BYTES: u64 = 0x400;
const READABLE: u64 = 0x1000;
const WRITABLE: u64 = 0x3000;
const MEMORY_BYTES: u64 = 0x6000;

record! {
    /// One chain: the disk; which ring; `sense_size` and `cdb_size`, as far as they can be that; bytes that the device may write,
    /// and where the readable and the writable part are cut.
    pub struct Input { pub kind: Kind, pub ring: u8, pub sense_bytes: u16, pub cdb_bytes: u16, pub writable: u16, pub cut: u16, }
}

/// Runs one [`Input`]; the rest of the bytes are what the device reads.
pub fn run(data: &[u8]) {
    let mut source = arbitrary::Unstructured::new(data);
    let Ok(input) = source.arbitrary::<Input>() else { return };
    let rest = source.take_rest();
    let rest = &rest[..rest.len().min((WRITABLE - READABLE) as usize)];
    let memory = Memory::new(MEMORY_BYTES as usize);
    memory.put(READABLE, rest);
    let mut disks = Disk::open(input.kind, 64, 1);
    disks[0].settle(&memory);
    let mut controller = Controller::<1, 1, 2>::new(Config { queues: 1, queue_size_max: 8 });
    let info = *blk_core::storage::Storage::<Memory>::info(&disks[0]);
    let identity = Identity::new("FUZZ", "fuzzed disk", "1", "S");
    controller.insert(Address { target: 0, lun: 0 }, identity, &info).expect("512-byte blocks");
    controller.write_config(20, &u32::from(input.sense_bytes).to_le_bytes());
    controller.write_config(24, &u32::from(input.cdb_bytes).to_le_bytes());

    let ring = [REQUEST, REQUEST, CONTROL, EVENT][usize::from(input.ring % 4)];
    let layout = Layout::compact(0, 8);
    assert!(layout.end() <= RING_BYTES * 4);
    memory.lend(layout.device_area());
    let mut driver = Ring::new(layout);
    let queue = controller.ring_mut(ring).expect("it has three");
    *queue.setup_mut().expect("it is off") = layout.setup();
    queue.enable(RingFeatures::default()).expect("a layout that is right");

    let writable = u64::from(input.writable) % (MEMORY_BYTES - WRITABLE);
    memory.lend(WRITABLE..WRITABLE + writable);
    let part = |at: u64, len: u64, writable: bool| {
        let cut = u64::from(input.cut).min(len);
        [(at, cut), (at + cut, len - cut)].map(|(at, len)| Buffer {
            addr: GuestAddr(at),
            len: len as u32,
            writable,
        })
    };
    let mut buffers = part(READABLE, rest.len() as u64, false).to_vec();
    buffers.extend(part(WRITABLE, writable, true));
    buffers.retain(|buffer| buffer.len != 0);
    let Some(head) = driver.offer(&memory, &buffers, 0) else { return };
    if ring == EVENT {
        // Something to tell.
        controller.remove(0);
    }
    let policy = Policy::open(Controller::<1, 1, 2>::offered());
    for round in 0.. {
        assert!(round < 10_000, "the controller never rests");
        if !controller.poll(&memory, &mut disks[..], &policy, &mut [(); 3]).again {
            break;
        }
    }
    assert!(controller.is_quiet(), "a disk that is done leaves nothing waiting");
    let broken = controller.ring(ring).and_then(|ring| ring.error());
    match driver.collect(&memory) {
        Some((back, written)) => {
            assert!(back == head && broken.is_none());
            assert!((1..=writable).contains(&u64::from(written)), "{written} of {writable}");
        }
        // There was no room for an answer, or nothing to say.
        None => assert!(broken.is_some() || ring == EVENT),
    }
    assert_eq!(driver.collect(&memory), None, "it comes back once");
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let input = |ring: u8, writable: u16, data: &[u8]| {
        let input = Input { kind: Kind::WRITE_BACK, ring, sense_bytes: 96, cdb_bytes: 32, writable, cut: 51 };
        let mut bytes = Vec::new();
        input.put(&mut bytes);
        bytes.extend_from_slice(data);
        bytes
    };
    let request = |lun: [u8; 8], cdb: &[u8], out: usize| {
        let mut bytes = vec![0; 51 + out];
        bytes[..8].copy_from_slice(&lun);
        bytes[19..19 + cdb.len()].copy_from_slice(cdb);
        bytes
    };
    let unit = [1, 0, 0, 0, 0, 0, 0, 0];
    let mut seeds = vec![
        input(0, 108, &request(unit, &[0; 6], 0)),
        input(0, 108 + 255, &request(unit, &[0x12, 0, 0, 0, 255, 0], 0)),
        input(0, 108 + 512, &request(unit, &[0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0], 0)),
        input(0, 108, &request(unit, &[0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0], 512)),
        input(0, 108 + 255, &request([1, 0, 0x40, 9, 0, 0, 0, 0], &[0x12, 0, 0, 0, 255, 0], 0)),
        input(0, 108 + 255, &request([0xc1, 1, 0, 0, 0, 0, 0, 0], &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 0)),
        input(3, 16, &[]),
    ];
    for subtype in 0..8 {
        let mut tmf = [0; 24];
        (tmf[4], tmf[8]) = (subtype, 1);
        seeds.push(input(2, 1, &tmf));
    }
    seeds.push(input(2, 5, &[&[1, 0, 0, 0][..], &unit, &[0xff; 4]].concat()));
    seeds
}
