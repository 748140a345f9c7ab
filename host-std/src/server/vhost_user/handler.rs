//! Message handlers of one vhost-user connection: negotiation, memory, rings, configuration, in-flight region.
//!
//! A ring starts as soon as it has a size, addresses and a kick and is enabled. GET_VRING_BASE, RESET_DEVICE and a disconnect
//! drain and stop it. A refused message leaves a `Refusal`; `connection.rs` then ends the connection, unless a REPLY_ACK told
//! the client or the refusal is tolerable.

use std::fs::File;
use std::io;
use std::sync::Arc;

use blk_core::memory::GuestMemory as _;
use blk_core::units::GuestAddr;
use blk_core::virtq::{RingFeatures, RingSetup};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::device::VhostUserDevice;
use super::header::Header;
use super::memory_table::{SLOTS_MAX, Table, UncheckedRegion};
use super::vring::{Addresses, Vring};
use crate::memory::MappedMemory;
use crate::server::client_fd::ClientFd;
use crate::server::mutant::{self, Mutant};
use crate::server::queue::{Command, VringSetup};
use crate::server::virtio::{DriverCacheView, Negotiated};
use crate::server::vring::{InflightLayout, InflightRecorder, PersistentState, Region};

/// VHOST_USER_F_PROTOCOL_FEATURES, among the virtio features.
const PROTOCOL_FEATURES: u64 = 1 << 30;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// Why a message was refused.
pub(super) struct Refusal {
    pub(super) why: String,
    /// The connection stays open even without REPLY_ACK: the client can read back the field that it wrote.
    pub(super) tolerable: bool,
}

/// State of one connection, as the client has set it up.
pub(super) struct Handler {
    device: Arc<VhostUserDevice>,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    table: Table,
    memory: MappedMemory,
    vrings: Vec<Vring>,
    in_flight: Option<(Region, Arc<PersistentState>)>,
    /// This client has started a ring. A later GET_CONFIG may be the VMM's own, whose result the guest never sees.
    started: bool,
    /// `writeback` as the driver last read or wrote it. `None`: unknown, and treated as write-through.
    driver_cache_view: Option<bool>,
    /// Set the view to `Some(true)` once the present message is replied to: until then writes must be stable. `Some(false)` is
    /// set before the reply.
    write_back_after_reply: bool,
    refusal: Option<Refusal>,
}

impl Handler {
    pub(super) fn new(device: Arc<VhostUserDevice>) -> Self {
        let vrings = (0..device.backend.rings()).map(|_| Vring::default()).collect();
        Self {
            device,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            table: Table::default(),
            memory: MappedMemory::default(),
            vrings,
            in_flight: None,
            started: false,
            driver_cache_view: None,
            write_back_after_reply: false,
            refusal: None,
        }
    }

    /// Whether the message with this header gets a REPLY_ACK, which tells the client of success or failure.
    pub(super) fn was_answered(&self, header: Header) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) && header.asks_for_ack()
    }

    /// Whether BACKEND_REQ was negotiated: the client accepts requests of the back end.
    pub(super) const fn may_send_requests(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ)
    }

    /// Takes the refusal of the last message, if there is one.
    pub(super) const fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
    }

    /// The reply was sent: a change to write-back, which weakens the promise, takes effect now.
    pub(super) fn replied(&mut self) {
        if std::mem::take(&mut self.write_back_after_reply) {
            self.set_driver_cache_view(Some(true));
        }
    }

    /// Ends the connection: drains and stops the rings, closes the client's descriptors, drops its memory.
    pub(super) fn close(&mut self) {
        self.stop_all();
        self.device.backend.images().forget_client_latches();
        for index in 0..self.vrings.len() {
            self.device.send(index, |ring| Command::Call { ring, call: None });
            self.device.send(index, |ring| Command::Err { ring, err: None });
        }
        self.device.call_all(|done| Command::Memory(MappedMemory::default(), done));
    }

    fn refuse<T>(&mut self, why: impl Into<String>) -> Result<T> {
        self.refusal = Some(Refusal { why: why.into(), tolerable: false });
        Err(Error::ReqHandlerError(io::ErrorKind::InvalidInput.into()))
    }

    fn client_fd(&mut self, fd: Option<File>) -> Result<Option<ClientFd>> {
        match fd.map(ClientFd::new).transpose() {
            Ok(fd) => Ok(fd),
            Err(why) => self.refuse(why),
        }
    }

    fn vring(&mut self, index: u32) -> Result<usize> {
        let index = index as usize;
        let count = self.vrings.len();
        if index < count { Ok(index) } else { self.refuse(format!("queue {index} of {count}")) }
    }

    /// A ring that may be set up, since it does not run.
    fn idle_vring(&mut self, index: u32) -> Result<&mut Vring> {
        let index = self.vring(index)?;
        if self.vrings[index].started {
            return self.refuse(format!("queue {index} cannot be set up while it runs"));
        }
        Ok(&mut self.vrings[index])
    }

    /// Starts what has become ready to run.
    fn start_ready(&mut self) -> Result<()> {
        for index in 0..self.vrings.len() {
            if !self.vrings[index].started
                && self.vrings[index].is_ready()
                && let Err(why) = self.start(index)
            {
                return self.refuse(format!("queue {index} cannot start: {why}"));
            }
        }
        Ok(())
    }

    fn start(&mut self, index: usize) -> std::result::Result<(), String> {
        let vring = &self.vrings[index];
        let (Some(size), Some(user)) = (vring.size, vring.addresses) else { return Ok(()) };
        let translate = |user: u64| {
            self.table.guest_addr(user).ok_or_else(|| format!("its ring at {user:#x} is in no memory region"))
        };
        let (descriptors, driver) = (translate(user.descriptors)?, translate(user.driver)?);
        let setup = RingSetup { size, descriptors, driver, device: translate(user.device)? };
        let used = setup.device.checked_add(2).unwrap_or(GuestAddr(u64::MAX));
        let used = self.memory.load_u16_acquire(used).map_err(|_| "its used ring is not in guest memory")?;
        let counters = self.device.counters(index);
        let mut position = blk_core::virtq::RingPosition { next_avail: vring.base, next_used: used };
        let mut log = InflightRecorder::none(Arc::clone(&counters));
        if let Some((region, persistent)) = &self.in_flight
            && let Some(queue) = region.queue(index as u16)
        {
            let recovered = queue.recover(size, used)?;
            position = recovered.position(used);
            self.device.resubmits(recovered.unfinished.len());
            if !recovered.unfinished.is_empty() {
                tracing::info!(
                    queue = index,
                    requests = recovered.unfinished.len(),
                    "resubmits the requests that the previous server left in flight"
                );
            }
            log = InflightRecorder::new(queue, Arc::clone(persistent), recovered, counters);
        } else if position.next_avail != used {
            tracing::warn!(
                queue = index,
                available = position.next_avail,
                used,
                "the available index differs from the used index, without an in-flight region: requests between them may never complete"
            );
        }
        let features = RingFeatures {
            indirect: self.features & INDIRECT_DESC != 0,
            event_idx: self.features & EVENT_IDX != 0,
        };
        let kick = self.vrings[index].take_kick();
        let start = Box::new(VringSetup { setup, features, position, log, kick });
        self.device.call(index, |ring, started| Command::Start { ring, start, started })??;
        self.vrings[index].started = true;
        self.started = true;
        tracing::debug!(queue = index, size, ?position, "runs");
        Ok(())
    }

    /// Stops a ring once nothing of it is in flight.
    fn stop(&mut self, index: usize) {
        if std::mem::take(&mut self.vrings[index].started) {
            match self.device.call(index, |ring, stopped| Command::Stop { ring, stopped }) {
                Ok(base) => self.vrings[index].base = base,
                Err(why) => tracing::error!(queue = index, "{why}"),
            }
        }
        self.vrings[index].forget_kick();
    }

    fn stop_all(&mut self) {
        for index in 0..self.vrings.len() {
            self.stop(index);
        }
    }

    /// The client's memory, as a whole.
    pub(super) fn set_regions(
        &mut self,
        regions: impl IntoIterator<Item = (UncheckedRegion, File)>,
    ) -> Result<()> {
        match Table::new(regions.into_iter(), self.device.lifecycle.bus_errors()) {
            Ok(table) => self.set_table(table),
            Err(why) => self.refuse(why),
        }
    }

    fn set_table(&mut self, table: Table) -> Result<()> {
        let memory = match table.mapped() {
            Ok(memory) => memory,
            Err(why) => return self.refuse(why),
        };
        (self.table, self.memory) = (table, memory.clone());
        self.device.memory_table_set();
        self.device.call_all(|done| Command::Memory(memory.clone(), done));
        self.start_ready()
    }

    /// Sets and persists the driver's view of the cache, and publishes it to the queues.
    fn set_driver_cache_view(&mut self, write_back: Option<bool>) {
        self.driver_cache_view = write_back;
        if self.device.backend.writeback_offset().is_some()
            && let Some((_, persistent)) = &self.in_flight
        {
            persistent.store_setting(0, write_back.map(u8::from));
        }
        self.publish_negotiated();
    }

    /// Sends features and cache setting to every queue thread, and waits until each has them.
    fn publish_negotiated(&self) {
        let unknown = mutant::active(Mutant::UnknownTakenAsWriteBack);
        let write_back = match self.device.backend.driver_cache_view(self.features) {
            DriverCacheView::WriteThrough => false,
            DriverCacheView::WriteBack => true,
            DriverCacheView::ConfigField => self.driver_cache_view.unwrap_or(unknown),
        };
        let negotiated = Negotiated { features: self.features, write_back, epoch: 0 };
        self.device.call_all(|done| Command::Negotiated(negotiated, done));
    }

    /// Handles a write to `writeback`. On takes effect after the reply. Off drains and flushes first; if the flush fails, the
    /// cache stays on.
    fn write_writeback(&mut self, on: bool) -> Result<()> {
        if on {
            // From the reply on.
            self.device.set_writeback(true);
            self.write_back_after_reply = true;
            return Ok(());
        }
        if !self.device.turn_cache_off() {
            if let Some((_, persistent)) = &self.in_flight {
                persistent.store_latches();
            }
            let why = "the flush that turns the write cache off failed: the cache stays on";
            self.refusal = Some(Refusal { why: why.into(), tolerable: true });
            return Err(Error::ReqHandlerError(io::ErrorKind::Other.into()));
        }
        self.set_driver_cache_view(Some(false));
        // `turn_cache_off` returned with the queues held.
        self.device.hold(false);
        Ok(())
    }
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// "It is recommended that back-ends either ignore this message, or use it to disable all rings."
    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_all();
        self.vrings.fill_with(Vring::default);
        self.device.call_all(Command::Reset);
        self.features = 0;
        self.in_flight = None;
        self.publish_negotiated();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.device.backend.features() | PROTOCOL_FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !(self.device.backend.features() | PROTOCOL_FEATURES);
        if unknown != 0 {
            return self.refuse(format!("features {unknown:#x} were not offered"));
        }
        self.features = features & !PROTOCOL_FEATURES;
        self.publish_negotiated();
        if features & PROTOCOL_FEATURES == 0 {
            // "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled state."
            for vring in &mut self.vrings {
                vring.enabled = true;
            }
            self.start_ready()?;
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.set_regions(regions.iter().map(UncheckedRegion::from).zip(files)).map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size_max = self.device.backend.ring_size_max();
        let vring = self.idle_vring(index)?;
        match u16::try_from(num) {
            Ok(size) if size.is_power_of_two() && size <= size_max => vring.size = Some(size),
            _ => {
                return self.refuse(format!(
                    "queue {index} is to have {num} entries: a power of two up to {size_max} is possible"
                ));
            }
        }
        self.start_ready()
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = Addresses { descriptors: descriptor, driver: available, device: used };
        let index = self.vring(index)?;
        if self.vrings[index].started {
            // libblkio and QEMU may send the same addresses again.
            if self.vrings[index].addresses == Some(addresses) {
                return Ok(());
            }
            return self.refuse(format!("queue {index} cannot be moved while it runs"));
        }
        self.vrings[index].addresses = Some(addresses);
        self.start_ready()
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        match u16::try_from(base) {
            Ok(base) => self.idle_vring(index)?.base = base,
            Err(_) => return self.refuse(format!("queue {index} is to begin at {base}")),
        }
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let at = self.vring(index)?;
        self.stop(at);
        Ok(VhostUserVringState::new(index, self.vrings[at].base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.vring(index.into())?;
        let kick = self.client_fd(fd)?;
        if self.vrings[index].started {
            return match self.device.call(index, |ring, done| Command::Kick { ring, kick, done }) {
                Ok(Ok(())) => Ok(()),
                Ok(Err(why)) | Err(why) => self.refuse(why),
            };
        }
        self.vrings[index].set_kick(kick);
        self.start_ready()
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.vring(index.into())?;
        let call = self.client_fd(fd)?;
        self.device.send(index, |ring| Command::Call { ring, call });
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.vring(index.into())?;
        let err = self.client_fd(fd)?;
        self.device.send(index, |ring| Command::Err { ring, err });
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()?.bits();
        if features & !offered != 0 {
            return self.refuse(format!("protocol features {:#x} were not offered", features & !offered));
        }
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.vring(index)?;
        self.vrings[index].enabled = enable;
        if self.vrings[index].started {
            return match self.device.call(index, |ring, done| Command::Enable { ring, enable, done }) {
                Ok(()) => Ok(()),
                Err(why) => self.refuse(why),
            };
        }
        self.start_ready()
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let writeback = self.device.writeback();
        let space = self.device.backend.config_space(writeback);
        // The crate bounds offset and size. What lies beyond the space reads as zeroes: clients know more fields than we have.
        let wanted = offset as usize..offset as usize + size as usize;
        let seen = self.device.backend.writeback_offset().is_some_and(|at| wanted.contains(&at));
        // A read counts as the driver's before a ring starts, or while the view is unknown (User-Mode Linux first reads with its
        // rings started). Other reads may be the VMM's own, after a change of the configuration.
        let first = !self.started || self.driver_cache_view.is_none();
        if seen && first && self.driver_cache_view != Some(writeback) {
            if writeback {
                self.write_back_after_reply = true;
            } else {
                self.set_driver_cache_view(Some(false));
            }
        }
        Ok(wanted.map(|at| space.get(at).copied().unwrap_or(0)).collect())
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let at = self.device.backend.writeback_offset().and_then(|at| at.checked_sub(offset as usize));
        match at.and_then(|at| bytes.get(at)) {
            None => {
                self.device.send(0, |_| Command::Config { offset: offset as usize, bytes: bytes.to_vec() });
                Ok(())
            }
            Some(on) => self.write_writeback(on & 1 != 0),
        }
    }

    fn set_backend_req_fd(&mut self, _backend: Backend) {
        // `raw_messages` handles this message, unless its header arrived in pieces.
        tracing::warn!(
            "the socket for requests to the client is not used: changes of capacity are not announced"
        );
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        self.refuse("this is no GPU")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        self.refuse("there are no shared objects")
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let VhostUserInflight { num_queues, queue_size, .. } = *wanted;
        let size_max = self.device.backend.ring_size_max();
        if usize::from(num_queues) > self.vrings.len() || queue_size > size_max {
            return self
                .refuse(format!("an in-flight region for {num_queues} queues of {queue_size} entries"));
        }
        let images = self.device.backend.images().lock().len() as u32;
        match Region::create(num_queues, queue_size, images) {
            Ok((_, layout, file)) => {
                let InflightLayout { bytes, offset, queues, queue_size } = layout;
                Ok((VhostUserInflight::new(bytes, offset, queues, queue_size), file))
            }
            Err(error) => self.refuse(format!("cannot make an in-flight region: {error}")),
        }
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let VhostUserInflight { mmap_size, mmap_offset, num_queues, queue_size } = *inflight;
        let layout = InflightLayout { bytes: mmap_size, offset: mmap_offset, queues: num_queues, queue_size };
        let region = match Region::open(file, &layout, self.device.lifecycle.bus_errors()) {
            Ok(region) => region,
            Err(why) => return self.refuse(why),
        };
        let persistent =
            Arc::new(PersistentState::open(region.clone(), self.device.backend.images().clone()));
        let settings = persistent.settings();
        if self.device.backend.writeback_offset().is_none() {
            self.device.send(0, |_| Command::Resume(settings));
            self.in_flight = Some((region, persistent));
            return Ok(());
        }
        // The persisted view and what this client has read: if they differ, write-through, the stricter one, holds.
        let driver_cache_view =
            match (settings.first().copied().flatten().map(|on| on & 1 != 0), self.driver_cache_view) {
                (Some(kept), Some(read)) => Some(kept && read),
                (kept, read) => kept.or(read),
            };
        if let Some(write_back) = driver_cache_view {
            self.device.set_writeback(write_back);
        }
        self.in_flight = Some((region, persistent));
        self.set_driver_cache_view(driver_cache_view);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let mut table = self.table.clone();
        match table.add(UncheckedRegion::from(&**region), file, self.device.lifecycle.bus_errors()) {
            Ok(()) => self.set_table(table).map(|()| None),
            Err(why) => self.refuse(why),
        }
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let mut table = self.table.clone();
        match table.remove(&UncheckedRegion::from(&**region)) {
            Ok(()) => self.set_table(table),
            Err(why) => self.refuse(why),
        }
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        self.refuse("the device's state cannot be transferred")
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.refuse("the device's state cannot be transferred")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        self.refuse("there are no shared memory regions")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        self.refuse("dirty pages are not logged")
    }
}

impl From<&VhostUserMemoryRegion> for UncheckedRegion {
    fn from(region: &VhostUserMemoryRegion) -> Self {
        let VhostUserMemoryRegion { guest_phys_addr, memory_size, user_addr, mmap_offset } = *region;
        Self { guest: guest_phys_addr, bytes: memory_size, user: user_addr, offset: mmap_offset }
    }
}
