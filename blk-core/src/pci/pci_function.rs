//! A function as a machine sees it: configuration space in front of a device's registers, and its interrupts by the way that
//! the guest has chosen.

use super::capability::Message;
use super::config_space::{Command, ConfigSpace};
use super::function::{Bar, Function};
use super::msix::MsixTable;
use crate::bus::{
    Access, Device, IrqChange, Progress, Quiet, Region, Width, WriteStatus, Written, read_each, write_each,
};

/// Permissions that configuration space gives the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Permissions {
    /// It may access memory. Without it nothing new may be begun that does; what is in flight ends.
    pub bus_master: bool,
    /// How many messages it may tell apart: those that were allocated with MSI, all entries of the table with MSI-X. With none its
    /// interrupts go by the pin.
    pub messages: u16,
}

impl Permissions {
    /// Those after a reset.
    pub const NONE: Self = Self { bus_master: false, messages: 0 };
}

/// A device made for a PCI function.
///
/// Its interrupt line 0 is the level of the INTx pin. Line `1 + v` is message `v`: each change of it, always to high, is
/// one that is due. It may report both, and the function takes the one that is enabled. A device whose function has no
/// interrupt pin has wires of its own, which are passed on as they are.
pub trait Endpoint {
    /// Most entries of an MSI-X table that its function can have; 0 if it never has one. A
    /// [`PciFunction`] with fewer does not compile.
    const VECTORS: usize = 0;

    /// The function's description. Constant.
    fn function(&self) -> Function;

    /// The configuration space has changed what it may do. After a reset it may nothing.
    fn permit(&mut self, permissions: Permissions);

    /// The driver's fault after which the device does nothing until it is reset, in words for the operator.
    fn fault(&self) -> Option<&'static str> {
        None
    }
}

/// Owner of the MSI-X table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum MsixOwner {
    /// The function: it masks, keeps pending bits, and knows the messages.
    Function,
    /// The embedder, which traps the table itself (as VFIO's users do): vectors are reported as they are raised.
    Embedder,
}

/// A device `D` behind its configuration space, with an MSI-X table of `V` entries: as many as the
/// device has at most ([`Endpoint::VECTORS`]) or more, up to 31; 0 for a device without MSI-X.
///
/// A table that is too small is an error of the compiler:
///
/// ```compile_fail,E0080
/// # use blk_core::{bus::*, pci::*};
/// struct Nvm;
///
/// impl Endpoint for Nvm {
///     const VECTORS: usize = 2;
/// #   fn function(&self) -> Function { unreachable!() }
/// #   fn permit(&mut self, _: Permissions) {}
///     // ...
/// }
///
/// let _function = PciFunction::<Nvm, 1>::new(Nvm, MsixOwner::Function);
/// ```
///
/// | range | what |
/// |---|---|
/// | `Config` | configuration space |
/// | `Bar(n)` | the device's registers, while they are decoded; in the BAR that the capability names also the MSI-X table |
///
/// Interrupt line 0 is the INTx pin, by level. Line `1 + v` is message `v`: each change of it, always to high, is one to
/// be sent, as [`Self::message`] says where to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct PciFunction<D, const V: usize> {
    config: ConfigSpace,
    msix: MsixTable<V>,
    owner: MsixOwner,
    permissions: Permissions,
    device: D,
}

impl<D: Quiet, const V: usize> Quiet for PciFunction<D, V> {
    fn is_quiet(&self) -> bool {
        self.device.is_quiet()
    }
}

#[cfg(feature = "snapshot")]
impl<D: crate::snapshot::Snapshot, const V: usize> crate::snapshot::Snapshot for PciFunction<D, V> {
    const KIND: crate::snapshot::Kind = D::KIND.behind(*b"PCIF").sized(V);
}

impl<D: Endpoint, const V: usize> PciFunction<D, V> {
    const FITS: () = {
        assert!(
            V <= 31,
            "PciFunction<D, V>: V is 31 at most, since interrupt lines are bits of a u32 and line 0 is the pin"
        );
        assert!(
            V >= D::VECTORS,
            "PciFunction<D, V>: V is less than D::VECTORS, so interrupts of the device would have no MSI-X entry; \
             give V = D::VECTORS or more, up to 31"
        );
    };

    /// A function after power-on.
    #[must_use]
    pub fn new(device: D, owner: MsixOwner) -> Self {
        let mut function = Self::off(device, owner);
        function.power_on();
        function
    }

    /// A function without power, for a static: the slot reads as if it were empty until [`Self::power_on`].
    #[must_use]
    pub const fn off(device: D, owner: MsixOwner) -> Self {
        const { Self::FITS }
        let (config, msix) = (ConfigSpace::off(), MsixTable::new());
        Self { config, msix, owner, permissions: Permissions::NONE, device }
    }

    /// Turns the power on, in place: the function answers as its device describes it.
    pub fn power_on(&mut self) {
        self.config.power_on(self.device.function());
    }

    /// The configuration space: where the BARs are, which the embedder maps again after a write there.
    pub const fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// The device.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// The device, for what is not of the bus: drives that are plugged and pulled.
    pub const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Where message `vector` is to be sent; `None` where the guest has not enabled messages, or the embedder keeps the
    /// MSI-X table.
    #[must_use]
    pub fn message(&self, vector: u16) -> Option<Message> {
        match (self.config.msix_enabled(), self.owner) {
            (true, MsixOwner::Function) => self.msix.message(vector),
            (true, MsixOwner::Embedder) => None,
            (false, _) if self.config.msi_enabled() => self.config.msi_message(vector),
            (false, _) => None,
        }
    }

    /// Whether a BAR is decoded now (PCI 3.0, 6.2.2), wherever it is.
    fn decodes(&self, n: u8) -> bool {
        let needed = match self.config.function().bars.get(usize::from(n)) {
            Some(Bar::Io { .. }) => Command::IO,
            Some(Bar::Memory32 { .. } | Bar::Memory64 { .. }) => Command::MEMORY,
            Some(Bar::Absent) | None => return false,
        };
        self.config.command().contains(needed)
    }

    /// Where an access meets the MSI-X table or its pending bits.
    #[inline]
    fn msix_at(&self, region: Region, offset: u64) -> Option<MsixPlace> {
        let Region::Bar(n) = region else { return None };
        let [table, pending] = self.config.msix_places()?;
        let within = |(bar, start): (u8, u32), bytes: u64| {
            let at = offset.checked_sub(u64::from(start)).filter(|at| *at < bytes)?;
            (bar == n).then_some(at)
        };
        let table = within(table, MsixTable::<V>::TABLE_BYTES).map(MsixPlace::Table);
        table.or_else(|| within(pending, 8).map(MsixPlace::Pending))
    }

    /// Whether an access goes to the device.
    fn is_register(&self, region: Region, offset: u64) -> bool {
        matches!(region, Region::Bar(n) if self.decodes(n)) && self.msix_at(region, offset).is_none()
    }

    /// The device's interrupts, by the way that is enabled.
    #[inline]
    fn deliver(&mut self, irq: IrqChange) -> IrqChange {
        // Nothing else makes a message due but a write that unmasks it, which looks by itself.
        if irq.changed == 0 || self.config.function().identity.interrupt_pin == 0 {
            return irq;
        }
        let pin = irq.line(0).map_or(IrqChange::NONE, |level| self.config.set_level(level));
        let raised = irq.changed & irq.level & !1;
        let messages = match (self.config.msix_enabled(), self.owner) {
            (true, MsixOwner::Function) => {
                for vector in 0..V as u16 {
                    if raised >> 1 & 1_u32.wrapping_shl(vector.into()) != 0 {
                        self.msix.raise(vector);
                    }
                }
                0
            }
            (true, MsixOwner::Embedder) => raised,
            (false, _)
                if self.config.msi_enabled() && self.config.command().contains(Command::BUS_MASTER) =>
            {
                raised
            }
            (false, _) => 0,
        };
        pin.then(IrqChange { changed: messages, level: messages }).then(self.due())
    }

    /// Messages of the MSI-X table that are due, be it by an unmask.
    fn due(&mut self) -> IrqChange {
        let mut lines = 0;
        if self.owner == MsixOwner::Function && self.config.msix_enabled() {
            while let Some((vector, _)) = self.msix.take(self.config.msix_masked()) {
                lines |= 2_u32.wrapping_shl(vector.into());
            }
        }
        IrqChange { changed: lines, level: lines }
    }

    /// A read of what the window shows is made where it looks. It looks at the device, not at the MSI-X table.
    fn read_config<M: ?Sized, S: ?Sized>(
        &mut self,
        (offset, width): (u64, Width),
        memory: &M,
        storage: &mut S,
    ) -> Access<u64>
    where
        D: Device<M, S>,
    {
        let mut irq = IrqChange::NONE;
        if let Some(window) = self.config.window(offset, width) {
            let region = Region::Bar(window.bar);
            let access = self.device.read(region, window.offset, window.width, memory, storage);
            self.config.fill_window(&window, access.value);
            irq = self.deliver(access.irq);
        }
        Access { value: self.config.read(offset, width), irq }
    }

    fn write_config<M: ?Sized, S: ?Sized>(
        &mut self,
        (offset, width): (u64, Width),
        value: u64,
        memory: &M,
        storage: &mut S,
    ) -> Access<WriteStatus>
    where
        D: Device<M, S>,
    {
        let changed = self.config.write(offset, width, value);
        self.permit();
        let irq = changed.irq.then(self.due());
        let Some(window) = self.config.window(offset, width) else {
            return Access { value: WriteStatus::Done, irq };
        };
        let region = Region::Bar(window.bar);
        let access = self.device.write(region, window.offset, window.width, window.data, memory, storage);
        Access { value: access.value, irq: irq.then(self.deliver(access.irq)) }
    }

    fn permit(&mut self) {
        let permissions = Permissions {
            bus_master: self.config.command().contains(Command::BUS_MASTER),
            messages: self.config.messages(),
        };
        if permissions != self.permissions {
            self.permissions = permissions;
            self.device.permit(permissions);
        }
    }
}

enum MsixPlace {
    Table(u64),
    Pending(u64),
}

impl<D, const V: usize, M: ?Sized, S: ?Sized> Device<M, S> for PciFunction<D, V>
where
    D: Endpoint + Device<M, S>,
{
    fn read(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        memory: &M,
        storage: &mut S,
    ) -> Access<u64> {
        let Region::Bar(n) = region else { return self.read_config((offset, width), memory, storage) };
        if !self.decodes(n) {
            return Access::quiet(width.ones());
        }
        match self.msix_at(region, offset) {
            Some(MsixPlace::Table(at)) => Access::quiet(self.msix.read(at, width)),
            Some(MsixPlace::Pending(at)) => Access::quiet(self.msix.read_pending(at, width)),
            None => {
                let access = self.device.read(region, offset, width, memory, storage);
                Access { irq: self.deliver(access.irq), ..access }
            }
        }
    }

    fn write(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut S,
    ) -> Access<WriteStatus> {
        let Region::Bar(n) = region else {
            return self.write_config((offset, width), value, memory, storage);
        };
        if !self.decodes(n) {
            return Access::quiet(WriteStatus::Done);
        }
        match self.msix_at(region, offset) {
            Some(MsixPlace::Table(at)) => {
                self.msix.write(at, width, value);
                Access { value: WriteStatus::Done, irq: self.due() }
            }
            Some(MsixPlace::Pending(_)) => Access::quiet(WriteStatus::Done),
            None => {
                let access = self.device.write(region, offset, width, value, memory, storage);
                Access { irq: self.deliver(access.irq), ..access }
            }
        }
    }

    fn read_string(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        into: &mut [u8],
        memory: &M,
        storage: &mut S,
    ) -> Access<usize> {
        if self.is_register(region, offset) {
            let access = self.device.read_string(region, offset, width, into, memory, storage);
            return Access { irq: self.deliver(access.irq), ..access };
        }
        read_each(self, (region, offset, width), into, memory, storage)
    }

    fn write_string(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        from: &[u8],
        memory: &M,
        storage: &mut S,
    ) -> Access<Written> {
        if self.is_register(region, offset) {
            let access = self.device.write_string(region, offset, width, from, memory, storage);
            return Access { irq: self.deliver(access.irq), ..access };
        }
        write_each(self, (region, offset, width), from, memory, storage)
    }

    #[inline]
    fn poll(&mut self, memory: &M, storage: &mut S) -> Progress {
        let progress = self.device.poll(memory, storage);
        Progress { irq: self.deliver(progress.irq), ..progress }
    }

    /// The bus's reset: the configuration space is as after power-on at once.
    fn reset(&mut self, memory: &M, storage: &mut S) -> Progress {
        let before = self.config.is_asserted();
        let progress = self.device.reset(memory, storage);
        let wires = self.deliver(progress.irq);
        self.config.reset();
        self.msix = MsixTable::new();
        self.permit();
        let pin = IrqChange::between(before.into(), 0);
        let irq = if self.config.function().identity.interrupt_pin == 0 { wires } else { pin };
        Progress { irq, ..progress }
    }
}
