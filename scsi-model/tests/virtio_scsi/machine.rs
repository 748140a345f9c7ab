//! A machine with one virtio-scsi controller, and a driver's pen for whatever it may write.

use std::cell::RefCell;

use blk_core::bus::{Region, Width};
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::sim::virtio::{self, RingLayout, Transport};
pub(crate) use blk_core::sim::virtio::{INDIRECT, NEXT, Piece, WRITE};
pub(crate) use blk_core::sim::{Bench, BenchRing};
use blk_core::storage::{Cache, Storage};
use blk_core::virtio::mmio::{INTERRUPT_CONFIG, register};
use scsi_model::Config as Identity;
use scsi_model::front::virtio_scsi::wire::Features;
use scsi_model::front::virtio_scsi::{Address, CONTROL, Config, EVENT, Mmio, Pci, REQUEST, Scsi};

use crate::rig::{Disk, Memory, TAGS};

pub(crate) const QUEUES: usize = 2;
pub(crate) const UNITS: usize = 4;
const RINGS: usize = QUEUES + 2;
pub(crate) const RING: u16 = 64;

const RING_BYTES: u64 = 0x1000;
/// Each descriptor has bytes of its own: requests do not share any.
const BUFFERS: u64 = 0x1_0000;
const BUFFER_BYTES: u64 = 0x1000;
const MEMORY_BYTES: u64 = BUFFERS + RINGS as u64 * RING as u64 * BUFFER_BYTES;

pub(crate) const HEAD_BYTES: usize = 51;
pub(crate) const RESPONSE_BYTES: usize = 108;

pub(crate) const OK: u8 = 0;
pub(crate) const OVERRUN: u8 = 1;
pub(crate) const ABORTED: u8 = 2;
pub(crate) const BAD_TARGET: u8 = 3;
pub(crate) const RESET: u8 = 4;
pub(crate) const FAILURE: u8 = 9;
pub(crate) const SUCCEEDED: u8 = 10;
pub(crate) const REJECTED: u8 = 11;
pub(crate) const INCORRECT_LUN: u8 = 12;

pub(crate) const GOOD: u8 = 0;
pub(crate) const CHECK_CONDITION: u8 = 2;

pub(crate) const TEST_UNIT_READY: [u8; 6] = [0; 6];
pub(crate) const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 255, 0];

/// A chain in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) ring: usize,
    pub(crate) head: u16,
    /// Where its response is, and where its data.
    pub(crate) response: u64,
    pub(crate) data: u64,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) response: u8,
    pub(crate) status: u8,
    pub(crate) residual: u32,
    pub(crate) sense: Vec<u8>,
    pub(crate) used_len: u32,
}

impl Answer {
    /// Sense key and additional sense code, in fixed format.
    pub(crate) fn key(&self) -> (u8, u16) {
        assert_eq!((self.response, self.status), (OK, CHECK_CONDITION), "{self:?}");
        (self.sense[2] & 0xf, u16::from_be_bytes([self.sense[12], self.sense[13]]))
    }

    pub(crate) fn is_good(&self) -> bool {
        (self.response, self.status) == (OK, GOOD)
    }
}

pub(crate) type OnMmio = Mmio<QUEUES, UNITS, TAGS>;
pub(crate) type OnPci = PciFunction<Pci<QUEUES, UNITS, TAGS>, 31>;

pub(crate) struct Machine<D = OnMmio> {
    pub(crate) memory: Memory,
    pub(crate) device: D,
    pub(crate) disks: Vec<Disk>,
    rings: [BenchRing; RINGS],
    next_id: u64,
}

fn layout(ring: usize) -> RingLayout {
    let at = ring as u64 * RING_BYTES;
    RingLayout { entries: RING, descriptors: at, driver: at + 0x400, device: at + 0x500 }
}

/// The features that a driver takes by default.
pub(crate) fn features() -> Features {
    Features::all().difference(Features::EVENT_IDX)
}

pub(crate) const fn at(target: u8, lun: u16) -> Address {
    Address { target, lun }
}

/// As Linux writes it (virtio_scsi.c, `virtscsi_init_hdr`).
pub(crate) fn lun(target: u8, lun: u16) -> [u8; 8] {
    [1, target, (lun >> 8) as u8 | 0x40, lun as u8, 0, 0, 0, 0]
}

/// As REPORT LUNS lists a unit with a number below 256, and Linux looks for it when an event names it.
pub(crate) fn listed(target: u8, lun: u8) -> [u8; 8] {
    [1, target, 0, lun, 0, 0, 0, 0]
}

pub(crate) fn read10(lba: u8, blocks: u8) -> [u8; 10] {
    [0x28, 0, 0, 0, 0, lba, 0, 0, blocks, 0]
}

pub(crate) fn write10(lba: u8, blocks: u8) -> [u8; 10] {
    [0x2a, 0, 0, 0, 0, lba, 0, 0, blocks, 0]
}

impl Machine {
    /// A controller that is up, with a disk at each address, whose unit attentions have been heard.
    pub(crate) fn new(addresses: &[Address]) -> Self {
        let mut machine = Self::fresh(addresses, features());
        for address in addresses {
            let heard = machine.command(address.encode(), &TEST_UNIT_READY, &[], 0).key();
            assert_eq!(heard, (6, 0x2900), "POWER ON");
        }
        machine
    }

    /// As it comes up.
    pub(crate) fn fresh(addresses: &[Address], features: Features) -> Self {
        let mut machine = Self::off(addresses);
        machine.bring_up(features);
        machine
    }

    pub(crate) fn off(addresses: &[Address]) -> Self {
        let mut scsi = Scsi::new(CONFIG);
        let disks = plug_all(&mut scsi, addresses);
        Self::with(Mmio::new(scsi), disks)
    }

    /// Bytes that nothing else uses: those of descriptor `index`.
    pub(crate) fn buffer(ring: usize, index: u16) -> u64 {
        BUFFERS + (ring as u64 * u64::from(RING) + u64::from(index % RING)) * BUFFER_BYTES
    }

    /// The header of a request.
    pub(crate) fn header(lun: [u8; 8], id: u64, attribute: u8, cdb: &[u8]) -> [u8; HEAD_BYTES] {
        let mut header = [0; HEAD_BYTES];
        header[..8].copy_from_slice(&lun);
        header[8..16].copy_from_slice(&id.to_le_bytes());
        header[16] = attribute;
        header[19..19 + cdb.len()].copy_from_slice(cdb);
        header
    }
}

impl Machine<OnPci> {
    /// A controller on PCI, with a disk at each address, that may do everything and is not up.
    pub(crate) fn on_pci(addresses: &[Address]) -> Self {
        let mut scsi = Scsi::new(CONFIG);
        let disks = plug_all(&mut scsi, addresses);
        let mut machine = Self::with(PciFunction::new(Pci::new(scsi), MsixOwner::Function), disks);
        machine.configure(4, 6);
        machine
    }

    pub(crate) fn configure(&mut self, at: u64, value: u64) {
        let _ = self.store(Region::Config, at, Width::Word, value);
    }
}

const CONFIG: Config = Config { queues: 2, queue_size_max: RING };

fn plug_all(scsi: &mut Scsi<QUEUES, UNITS, TAGS>, addresses: &[Address]) -> Vec<Disk> {
    let disks: Vec<Disk> = addresses.iter().map(|_| Disk::new(Cache::WriteBack)).collect();
    for (address, disk) in addresses.iter().zip(&disks) {
        scsi.controller_mut().insert(*address, identity(), &disk.info).unwrap();
    }
    disks
}

impl<D: Transport<Memory, [Disk]>> Bench for Machine<D> {
    type Memory = Memory;
    type Storage = [Disk];
    type Device = D;

    fn parts(&mut self) -> (&mut D, &Memory, &mut [Disk]) {
        (&mut self.device, &self.memory, &mut self.disks)
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn rings(&mut self) -> (&mut [BenchRing], &Memory) {
        (&mut self.rings, &self.memory)
    }
}

impl<D: Transport<Memory, [Disk]>> Machine<D> {
    fn with(device: D, disks: Vec<Disk>) -> Self {
        Self {
            memory: Memory(RefCell::new(vec![0; MEMORY_BYTES as usize])),
            device,
            disks,
            rings: std::array::from_fn(|ring| BenchRing::new(layout(ring))),
            next_id: 1,
        }
    }

    pub(crate) fn bring_up(&mut self, features: Features) {
        self.set(register::STATUS, 1);
        self.set(register::STATUS, 3);
        self.set_all(&virtio::accept(features.bits()));
        self.set(register::STATUS, 11);
        assert_eq!(self.get(register::STATUS), 11, "features accepted");
        for ring in 0..RINGS {
            self.set_up_ring(ring);
        }
        self.set(register::STATUS, 15);
    }

    pub(crate) fn next(&self, ring: usize) -> u16 {
        self.rings[ring].next()
    }

    /// The heads of what came back on a ring.
    pub(crate) fn heads(&mut self, ring: usize) -> Vec<u16> {
        std::iter::from_fn(|| self.reap(ring)).map(|(head, _)| head).collect()
    }

    /// Makes a SIMPLE command available on the first request queue. Its name is returned too.
    pub(crate) fn send(&mut self, lun: [u8; 8], cdb: &[u8], out: &[u8], in_bytes: usize) -> (Sent, u64) {
        self.next_id += 1;
        (self.send_as(REQUEST, lun, (self.next_id, 0), cdb, out, in_bytes), self.next_id)
    }

    pub(crate) fn send_as(
        &mut self,
        ring: usize,
        lun: [u8; 8],
        (id, attribute): (u64, u8),
        cdb: &[u8],
        out: &[u8],
        in_bytes: usize,
    ) -> Sent {
        let first = self.next(ring);
        let [head, middle, last] = [0, 1, 2].map(|index| <Machine>::buffer(ring, first + index));
        self.put(head, &<Machine>::header(lun, id, attribute, cdb));
        let mut pieces = vec![(head, HEAD_BYTES as u32, 0)];
        let (response, data) = if out.is_empty() { (middle, last) } else { (last, middle) };
        if !out.is_empty() {
            self.put(data, out);
            pieces.push((data, out.len() as u32, 0));
        }
        self.put(response, &[0xee; RESPONSE_BYTES]);
        pieces.push((response, RESPONSE_BYTES as u32, WRITE));
        if in_bytes != 0 {
            self.put(data, &vec![0xee; in_bytes]);
            pieces.push((data, in_bytes as u32, WRITE));
        }
        let head = self.offer(ring, &pieces);
        Sent { ring, head, response, data }
    }

    /// Makes a command available whose response is in two pieces, and its data too. The index of the data's first piece in the
    /// chain is returned too.
    pub(crate) fn send_cut(&mut self, cdb: &[u8], in_bytes: usize) -> (Sent, u16) {
        let first = self.next(REQUEST);
        let [head, response, data] = [0, 1, 2].map(|index| <Machine>::buffer(REQUEST, first + index));
        self.put(head, &<Machine>::header(lun(0, 0), 0, 0, cdb));
        self.put(response, &[0xee; RESPONSE_BYTES]);
        let (half, in_bytes) = (in_bytes as u64 / 2, in_bytes as u32);
        let pieces = [
            (head, HEAD_BYTES as u32, 0),
            (response, 20, WRITE),
            (response + 20, RESPONSE_BYTES as u32 - 20, WRITE),
            (data, half as u32, WRITE),
            (data + half, in_bytes - half as u32, WRITE),
        ];
        let head = self.offer(REQUEST, &pieces);
        (Sent { ring: REQUEST, head, response, data }, 3)
    }

    /// What came of a request that has just been returned with `used_len`.
    pub(crate) fn answer(&self, sent: Sent, used_len: u32) -> Answer {
        let bytes = self.fetch(sent.response, RESPONSE_BYTES);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Answer {
            response: bytes[11],
            status: bytes[10],
            residual: word(4),
            sense: bytes[12..12 + word(0) as usize].to_vec(),
            used_len,
        }
    }

    /// Polls, and takes what came back, which has to be this.
    pub(crate) fn expect(&mut self, sent: Sent) -> Answer {
        self.poll();
        let (head, used_len) = self.reap(sent.ring).expect("it comes back");
        assert_eq!(head, sent.head);
        self.answer(sent, used_len)
    }

    /// Executes a command.
    pub(crate) fn command(&mut self, lun: [u8; 8], cdb: &[u8], out: &[u8], in_bytes: usize) -> Answer {
        let (sent, _) = self.send(lun, cdb, out, in_bytes);
        let answer = self.expect(sent);
        assert_eq!(self.reap(REQUEST), None, "it comes back once");
        answer
    }

    /// Executes a command that returns data.
    pub(crate) fn data_in(&mut self, lun: [u8; 8], cdb: &[u8], in_bytes: usize) -> Vec<u8> {
        let (sent, _) = self.send(lun, cdb, &[], in_bytes);
        let answer = self.expect(sent);
        assert!(answer.is_good(), "{answer:?}");
        let moved = in_bytes - answer.residual as usize;
        assert_eq!(answer.used_len as usize, RESPONSE_BYTES + moved);
        self.fetch(sent.data, moved)
    }

    /// Makes a request of the control queue available.
    pub(crate) fn control(&mut self, request: &[u8], answer_bytes: u32) -> Sent {
        let first = self.next(CONTROL);
        let [data, response] = [0, 1].map(|index| <Machine>::buffer(CONTROL, first + index));
        self.put(data, request);
        self.put(response, &[0xee; 8]);
        let pieces = [(data, request.len() as u32, 0), (response, answer_bytes, WRITE)];
        let head = self.offer(CONTROL, &pieces);
        Sent { ring: CONTROL, head, response, data }
    }

    /// Makes a task management function available.
    pub(crate) fn manage(&mut self, subtype: u32, lun: [u8; 8], id: u64) -> Sent {
        let request = [&[0; 4][..], &subtype.to_le_bytes(), &lun, &id.to_le_bytes()].concat();
        self.control(&request, 1)
    }

    /// The response to a function that has come back; `None` if it has not.
    pub(crate) fn managed(&mut self, sent: Sent) -> Option<u8> {
        self.poll();
        let (head, used_len) = self.reap(CONTROL)?;
        assert_eq!((head, used_len), (sent.head, 1));
        Some(self.fetch(sent.response, 1)[0])
    }

    /// Gives the device a buffer for an event, and returns where it is.
    pub(crate) fn lend(&mut self, bytes: u32) -> u64 {
        let buffer = <Machine>::buffer(EVENT, self.next(EVENT));
        self.put(buffer, &[0xee; 16]);
        self.offer(EVENT, &[(buffer, bytes, WRITE)]);
        buffer
    }

    /// The next event: event, LUN, reason.
    pub(crate) fn event(&mut self) -> Option<(u32, [u8; 8], u32)> {
        self.poll();
        let (head, used_len) = self.reap(EVENT)?;
        let bytes = self.fetch(<Machine>::buffer(EVENT, head), 16);
        assert_eq!(used_len, 16);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Some((word(0), bytes[4..12].try_into().unwrap(), word(12)))
    }

    /// Lets disk `index` end its oldest operation.
    pub(crate) fn release(&mut self, index: usize) {
        self.disks[index].release(&self.memory, 0);
    }

    /// Whether the driver was told that the device needs a reset.
    pub(crate) fn is_broken(&mut self) -> bool {
        self.poll();
        let told = self.get(register::INTERRUPT_STATUS) & INTERRUPT_CONFIG != 0;
        assert_eq!(told, self.get(register::STATUS) & 64 != 0);
        told
    }

    /// A handle's description.
    pub(crate) fn sectors(&self, index: usize) -> u64 {
        Storage::<Memory>::info(&self.disks[index]).sectors
    }
}

pub(crate) fn identity() -> Identity {
    Identity::new("BLK", "bench disk", "1", "S123")
}
