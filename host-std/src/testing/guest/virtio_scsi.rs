//! A virtio-scsi driver in miniature: one request queue, one command at a time, interrupts polled for.

use blk_core::bus::{Region, Width};
use blk_core::memory::GuestMemory;
use blk_core::units::GuestAddr;
use blk_core::virtio::mmio::{INTERRUPT_USED, register};
use scsi_model::front::virtio_scsi::wire::{Features, RequestHead, ResponseHead};
use scsi_model::front::virtio_scsi::{Address, Mmio, REQUEST};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::GuestError;
use super::machine::Machine;
use super::scsi::{BUFFER, Carrier};
use crate::memory::MappedMemory;

/// Entries of the ring.
const RING: u16 = 8;
/// The ring's parts, and the one request.
const DESCRIPTORS: u64 = 0x1000;
const DRIVER_AREA: u64 = 0x1100;
const DEVICE_AREA: u64 = 0x1200;
const HEADER: u64 = 0x2000;
const RESPONSE: u64 = 0x2100;

/// The sizes of a device that nobody has told others (VIRTIO 1.3, 5.6.4).
const CDB_BYTES: usize = 32;
const SENSE_BYTES: usize = 96;

/// Descriptor flags (VIRTIO 1.3, 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A controller with its driver, for the unit 0 of its target 0.
pub struct VirtioScsi<const Q: usize, const L: usize, const N: usize> {
    machine: Machine<Mmio<Q, L, N>>,
    sent: u16,
}

impl<const Q: usize, const L: usize, const N: usize> VirtioScsi<Q, L, N> {
    /// Brings the controller up (VIRTIO 1.3, 3.1.1).
    ///
    /// # Errors
    /// [`GuestError`] if it does not come up.
    pub fn new(machine: Machine<Mmio<Q, L, N>>) -> Result<Self, GuestError> {
        let mut guest = Self { machine, sent: 0 };
        if guest.get(register::DEVICE_ID) != 8 {
            return Err(GuestError::Unknown("it is no SCSI host".into()));
        }
        let features = Features::VERSION_1.bits();
        let registers = [
            (register::STATUS, 0),
            (register::STATUS, 3),
            (register::DRIVER_FEATURES_SEL, 0),
            (register::DRIVER_FEATURES, features as u32),
            (register::DRIVER_FEATURES_SEL, 1),
            (register::DRIVER_FEATURES, (features >> 32) as u32),
            (register::STATUS, 11),
            (register::QUEUE_SEL, REQUEST as u32),
            (register::QUEUE_SIZE, RING.into()),
            (register::QUEUE_DESC_LOW, DESCRIPTORS as u32),
            (register::QUEUE_DRIVER_LOW, DRIVER_AREA as u32),
            (register::QUEUE_DEVICE_LOW, DEVICE_AREA as u32),
            (register::QUEUE_READY, 1),
            (register::STATUS, 15),
        ];
        for (offset, value) in registers {
            guest.set(offset, value)?;
        }
        match guest.get(register::STATUS) {
            15 => Ok(guest),
            other => Err(GuestError::Failed(format!("status {other:#x} after initialisation"))),
        }
    }

    fn get(&mut self, offset: u64) -> u32 {
        self.machine.read(Region::Bar(0), offset, Width::Dword) as u32
    }

    fn set(&mut self, offset: u64, value: u32) -> Result<(), GuestError> {
        self.machine.write(Region::Bar(0), offset, Width::Dword, value.into())
    }

    fn put(&self, at: u64, bytes: &[u8]) -> Result<(), GuestError> {
        self.machine.memory().write(GuestAddr(at), bytes).map_err(|_| no_memory())
    }

    /// Makes a chain of the pieces available: address, length, flags.
    fn offer(&mut self, pieces: &[(u64, usize, u16)]) -> Result<(), GuestError> {
        for (index, (addr, len, flags)) in (0_u16..).zip(pieces) {
            let more = usize::from(index) + 1 < pieces.len();
            let (flags, next) = if more { (flags | NEXT, index + 1) } else { (*flags, 0) };
            let rest = *len as u64 | u64::from(flags) << 32 | u64::from(next) << 48;
            self.put(DESCRIPTORS + 16 * u64::from(index), &addr.to_le_bytes())?;
            self.put(DESCRIPTORS + 16 * u64::from(index) + 8, &rest.to_le_bytes())?;
        }
        self.put(DRIVER_AREA + 4 + 2 * u64::from(self.sent % RING), &[0; 2])?;
        self.sent = self.sent.wrapping_add(1);
        let index = GuestAddr(DRIVER_AREA + 2);
        self.machine.memory().store_u16_release(index, self.sent).map_err(|_| no_memory())?;
        self.set(register::QUEUE_NOTIFY, REQUEST as u32)
    }
}

impl<const Q: usize, const L: usize, const N: usize> Carrier for VirtioScsi<Q, L, N> {
    fn memory(&self) -> &MappedMemory {
        self.machine.memory()
    }

    fn command(&mut self, cdb: &[u8], out: usize, room: usize) -> Result<(), GuestError> {
        let lun = Address { target: 0, lun: 0 }.encode();
        let head = RequestHead { lun, id: u64::from(self.sent).into(), ..RequestHead::default() };
        let mut block = [0; CDB_BYTES];
        block[..cdb.len()].copy_from_slice(cdb);
        self.put(HEADER, &[head.as_bytes(), &block].concat())?;
        let data = |len: usize, flags| (len != 0).then_some((BUFFER.0, len, flags));
        let pieces = [
            Some((HEADER, size_of::<RequestHead>() + CDB_BYTES, 0)),
            data(out, 0),
            Some((RESPONSE, size_of::<ResponseHead>() + SENSE_BYTES, WRITE)),
            data(room, WRITE),
        ];
        let pieces: Vec<_> = pieces.into_iter().flatten().collect();
        self.offer(&pieces)?;
        let sent = self.sent;
        self.machine.run_until(|machine, _| {
            let used = machine.memory().load_u16_acquire(GuestAddr(DEVICE_AREA + 2));
            (machine.line(0) && used == Ok(sent)).then_some(())
        })?;
        self.set(register::INTERRUPT_ACK, INTERRUPT_USED)?;
        let mut response = [0; size_of::<ResponseHead>() + SENSE_BYTES];
        self.memory().read(GuestAddr(RESPONSE), &mut response).map_err(|_| no_memory())?;
        let (head, sense) = ResponseHead::read_from_prefix(&response).map_err(|_| no_memory())?;
        match (head.response, head.status) {
            (0, 0) => Ok(()),
            (response, status) => {
                let sense = &sense[..sense.len().min(head.sense_len.get() as usize)];
                Err(GuestError::Failed(format!(
                    "response {response}, status {status:#x}, sense {sense:02x?}"
                )))
            }
        }
    }
}

fn no_memory() -> GuestError {
    GuestError::Unknown("no memory for the rings".into())
}
