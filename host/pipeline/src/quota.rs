//! What each namespace may use of this host, and what it has used.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use stepwell_core::{CpuAccount, Name, Quotas, share_of};

use crate::NotAdmitted;

/// When to try again where only the end of another run helps.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// The quotas of every namespace, and what they have used. One dispatcher owns it.
pub(crate) struct Accounts {
    all: ArcSwap<HashMap<Name, Arc<Account>>>,
    /// Held while accounts come, go, or get their quotas.
    changing: Mutex<()>,
    /// What one namespace may hold of all permits while there are others.
    share: usize,
    began: Instant,
}

/// One namespace's. It lives as long as the namespace does, or anything of it is deployed or runs, so that a change of quotas
/// forgets nothing.
pub(crate) struct Account {
    quotas: ArcSwapOption<Quotas>,
    /// The catalog has this namespace.
    is_listed: AtomicBool,
    running: AtomicUsize,
    cpu: Arc<CpuAccount>,
    pipelines: Mutex<HashMap<Name, Arc<CpuAccount>>>,
    /// Runs that began within the last second.
    starts: Mutex<Window<10>>,
    /// CPU time, in nanoseconds, of the last minute.
    spent: Mutex<Window<60>>,
    /// What of `cpu` is in `spent` already.
    seen: AtomicU64,
    /// As long as less of `cpu` is used, the quota of CPU time is not used up: what was left of it when `spent` was looked at.
    /// [`UNBOUNDED`]: there is no such quota.
    within: AtomicU64,
    /// The second in which `spent` was looked at.
    looked: AtomicU64,
    namespace: Name,
}

/// Where there is no quota of CPU time.
const UNBOUNDED: u64 = u64::MAX;

/// A run that counts; it counts no more when this is dropped.
pub(crate) struct Counted(Arc<Account>);

impl Accounts {
    pub(crate) fn new(permits: usize) -> Self {
        Self {
            all: ArcSwap::default(),
            changing: Mutex::default(),
            share: share_of(permits),
            began: Instant::now(),
        }
    }

    /// Sets the quotas of all namespaces at once; those that are not named have none, and their accounts go once nothing of
    /// theirs is left.
    pub(crate) fn set(&self, mut quotas: HashMap<Name, Quotas>) {
        let changing = lock(&self.changing);
        for (name, account) in self.all.load().iter() {
            account.set(quotas.remove(name));
        }
        for (name, quotas) in quotas {
            self.found(&name, &changing).set(Some(quotas));
        }
    }

    pub(crate) fn of(&self, namespace: &Name) -> Arc<Account> {
        if let Some(account) = self.all.load().get(namespace) {
            return account.clone();
        }
        self.found(namespace, &lock(&self.changing))
    }

    /// The account of a namespace, which is made if there is none; none goes meanwhile.
    fn found(&self, namespace: &Name, _changing: &MutexGuard<'_, ()>) -> Arc<Account> {
        let all = self.all.load();
        if let Some(account) = all.get(namespace) {
            return account.clone();
        }
        let new = Arc::new(Account::new(namespace));
        let mut next = HashMap::clone(&all);
        next.insert(namespace.clone(), new.clone());
        self.all.store(Arc::new(next));
        new
    }

    /// Drops the accounts of namespaces that are gone: else each would count as another for ever, and take its memory. Answers
    /// whether there were any.
    fn drop_unused(&self, _changing: &MutexGuard<'_, ()>) -> bool {
        let all = self.all.load();
        let is_used = |account: &Arc<Account>| {
            account.is_listed.load(Ordering::Relaxed)
                || account.running.load(Ordering::Acquire) > 0
                || !lock(&account.pipelines).is_empty()
        };
        if all.values().all(is_used) {
            return false;
        }
        let used = all.iter().filter(|(_, account)| is_used(account));
        let used = used.map(|(name, account)| (name.clone(), account.clone()));
        self.all.store(Arc::new(used.collect()));
        true
    }

    /// Counts a run of this namespace, unless its quotas of runs at once and of CPU time are used up.
    pub(crate) fn enter(&self, namespace: &Name) -> Result<Counted, NotAdmitted> {
        let account = self.of(namespace);
        let running = account.running.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(account);
        let account = &counted.0;
        let quotas = account.quotas.load();
        match quotas.as_ref().and_then(|quotas| quotas.concurrent_runs) {
            Some(most) if running >= most as usize => {
                account.refused("concurrent_runs");
                return Err(used_up("concurrent_runs", SOON));
            }
            None if running >= self.share && self.all.load().len() > 1 => {
                account.refused("share");
                return Err(NotAdmitted::Busy { retry_after: SOON });
            }
            _ => {}
        }
        if let Some(most) = quotas.as_ref().and_then(|quotas| quotas.cpu_per_minute)
            && let Some(wait) = account.cpu_wait(most, self.now())
        {
            account.refused("cpu_per_minute");
            return Err(used_up("cpu_per_minute", wait));
        }
        drop(quotas);
        Ok(counted)
    }

    /// The account of what the guests of one pipeline use.
    pub(crate) fn cpu(&self, namespace: &Name, pipeline: &Name) -> Arc<CpuAccount> {
        let account = self.found(namespace, &lock(&self.changing));
        let mut pipelines = lock(&account.pipelines);
        pipelines
            .entry(pipeline.clone())
            .or_insert_with(|| Arc::new(CpuAccount::within(&account.cpu)))
            .clone()
    }

    /// Sets the gauges of what was used; called before metrics are rendered.
    pub(crate) fn record(&self) {
        for (namespace, account) in self.all.load().iter() {
            for (pipeline, cpu) in lock(&account.pipelines).iter() {
                metrics::gauge!(
                    "stepwell_guest_cpu_seconds_total",
                    "namespace" => namespace.to_string(),
                    "pipeline" => pipeline.to_string(),
                )
                .set(cpu.used().as_secs_f64());
            }
        }
    }

    /// Drops the accounts of pipelines and namespaces that are gone: whatever is deployed or runs holds its own.
    /// Answers whether there were any.
    pub(crate) fn forget_unused(&self) -> bool {
        let changing = lock(&self.changing);
        let mut any = false;
        for account in self.all.load().values() {
            let mut pipelines = lock(&account.pipelines);
            let before = pipelines.len();
            pipelines.retain(|_, cpu| Arc::strong_count(cpu) > 1);
            any |= pipelines.len() < before;
            if pipelines.capacity() > pipelines.len().saturating_mul(4) {
                pipelines.shrink_to_fit();
            }
        }
        self.drop_unused(&changing) | any
    }

    pub(crate) fn has(&self, namespace: &Name) -> bool {
        self.all.load().contains_key(namespace)
    }

    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Counted {
    /// Counts the start of the run; the last thing that may keep it from starting.
    pub(crate) fn start(&self, now: Duration) -> Result<(), NotAdmitted> {
        let quotas = self.0.quotas.load();
        let Some(most) = quotas.as_ref().and_then(|quotas| quotas.runs_per_second) else {
            return Ok(());
        };
        let mut starts = lock(&self.0.starts);
        let wait = starts.until_below(now, TENTH, u64::from(most));
        if let Some(wait) = wait {
            self.0.refused("runs_per_second");
            return Err(used_up("runs_per_second", wait));
        }
        starts.add(now, TENTH, 1);
        Ok(())
    }

    /// How long until the run may go on, if its namespace has used up its quota of CPU time since it began. Asked before each of its
    /// calls, so it takes a lock once in a second at most while there is something left.
    pub(crate) fn cpu_wait(&self, now: impl FnOnce() -> Duration) -> Option<Duration> {
        let account = &self.0;
        let within = account.within.load(Ordering::Relaxed);
        if within == UNBOUNDED {
            return None;
        }
        let now = now();
        if nanos(account.cpu.used()) < within
            && account.looked.load(Ordering::Relaxed) == now.as_secs()
        {
            return None;
        }
        let most = account.quotas.load().as_ref()?.cpu_per_minute?;
        account.cpu_wait(most, now)
    }

    /// Counts a run that has to wait.
    pub(crate) fn count_wait(&self) {
        self.0.refused("cpu_per_minute");
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Account {
    fn new(namespace: &Name) -> Self {
        Self {
            quotas: ArcSwapOption::empty(),
            is_listed: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            cpu: Arc::default(),
            pipelines: Mutex::default(),
            starts: Mutex::new(Window::new()),
            spent: Mutex::new(Window::new()),
            seen: AtomicU64::new(0),
            within: AtomicU64::new(UNBOUNDED),
            looked: AtomicU64::new(0),
            namespace: namespace.clone(),
        }
    }

    fn set(&self, quotas: Option<Quotas>) {
        self.is_listed.store(quotas.is_some(), Ordering::Relaxed);
        let wants_cpu = |quotas: &Quotas| quotas.cpu_per_minute.is_some();
        let before = self.quotas.swap(quotas.map(Arc::new));
        if quotas.as_ref().is_some_and(wants_cpu) && !before.as_deref().is_some_and(wants_cpu) {
            // Nobody has looked until now, and what was used long ago is nothing of the last minute.
            self.seen.store(nanos(self.cpu.used()), Ordering::Relaxed);
        }
        // Runs that are under way look at the new quota before their next call.
        let is_bounded = quotas.as_ref().is_some_and(wants_cpu);
        let within = if is_bounded { 0 } else { UNBOUNDED };
        self.within.store(within, Ordering::Relaxed);
    }

    fn refused(&self, quota: &'static str) {
        metrics::counter!(
            "stepwell_quota_refusals_total",
            "namespace" => self.namespace.to_string(),
            "quota" => quota,
        )
        .increment(1);
    }

    /// How long until less than this was used in the last minute; none: it is.
    fn cpu_wait(&self, most: Duration, now: Duration) -> Option<Duration> {
        let mut spent = lock(&self.spent);
        let used = nanos(self.cpu.used());
        let seen = self.seen.swap(used, Ordering::Relaxed);
        spent.add(now, SECOND, used.saturating_sub(seen));
        let wait = spent.until_below(now, SECOND, nanos(most));
        // What goes out of the window until somebody looks again only leaves more.
        let left = nanos(most).saturating_sub(spent.sum);
        let within = used.saturating_add(left).min(UNBOUNDED - 1);
        self.within.store(within, Ordering::Relaxed);
        self.looked.store(now.as_secs(), Ordering::Relaxed);
        wait
    }
}

fn used_up(quota: &'static str, retry_after: Duration) -> NotAdmitted {
    NotAdmitted::Quota { quota, retry_after }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const TENTH: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

/// A sum over the last `N` slices of time.
struct Window<const N: usize> {
    slices: [u64; N],
    sum: u64,
    /// The newest slice's number.
    newest: u64,
}

impl<const N: usize> Window<N> {
    fn new() -> Self {
        Self {
            slices: [0; N],
            sum: 0,
            newest: 0,
        }
    }

    fn add(&mut self, now: Duration, slice: Duration, amount: u64) {
        self.slide(now, slice);
        let place = place::<N>(self.newest);
        if let Some(value) = self.slices.get_mut(place) {
            *value = value.saturating_add(amount);
            self.sum = self.sum.saturating_add(amount);
        }
    }

    /// How long until the sum is below `most`; none: it is.
    fn until_below(&mut self, now: Duration, slice: Duration, most: u64) -> Option<Duration> {
        self.slide(now, slice);
        let mut left = self.sum;
        if left < most {
            return None;
        }
        let into_slice = u64::try_from(now.as_nanos()).unwrap_or(0) % nanos(slice).max(1);
        let rest_of_slice = slice.saturating_sub(Duration::from_nanos(into_slice));
        for gone in 1..=N as u64 {
            let oldest = place::<N>(self.newest.wrapping_add(gone));
            left = left.saturating_sub(self.slices.get(oldest).copied().unwrap_or(0));
            if left < most {
                let whole = u32::try_from(gone - 1).unwrap_or(u32::MAX);
                return Some(rest_of_slice.saturating_add(slice.saturating_mul(whole)));
            }
        }
        // Not even an empty window is below nothing.
        Some(slice.saturating_mul(N as u32))
    }

    /// Forgets what is older than the window.
    fn slide(&mut self, now: Duration, slice: Duration) {
        let number = nanos(now) / nanos(slice).max(1);
        // The clock is read before the lock is taken, so that another caller may have been here with a later time.
        let passed = number.saturating_sub(self.newest);
        for step in 1..=passed.min(N as u64) {
            let place = place::<N>(self.newest.wrapping_add(step));
            if let Some(value) = self.slices.get_mut(place) {
                self.sum = self.sum.saturating_sub(std::mem::take(value));
            }
        }
        self.newest = self.newest.max(number);
    }
}

fn place<const N: usize>(number: u64) -> usize {
    usize::try_from(number % (N as u64).max(1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_window_holds_what_it_is_told_and_says_when_there_is_room() {
        let mut window = Window::<10>::new();
        assert_eq!(window.until_below(ms(0), TENTH, 3), None);
        window.add(ms(50), TENTH, 1);
        window.add(ms(450), TENTH, 2);
        assert_eq!(window.until_below(ms(460), TENTH, 4), None);
        // The first goes when its slice, the first tenth, is a second old.
        assert_eq!(window.until_below(ms(460), TENTH, 3), Some(ms(540)));
        assert_eq!(window.until_below(ms(999), TENTH, 3), Some(ms(1)));
        assert_eq!(window.until_below(ms(1000), TENTH, 3), None);
        assert_eq!(window.until_below(ms(1000), TENTH, 2), Some(ms(400)));
        assert_eq!(window.until_below(ms(1400), TENTH, 1), None);
        window.add(ms(1400), TENTH, 7);
        // Long after, nothing is left; and time that seems to go back breaks nothing.
        assert_eq!(window.until_below(ms(90_000), TENTH, 1), None);
        window.add(ms(80_000), TENTH, 1);
        assert_eq!(window.until_below(ms(90_000), TENTH, 1), Some(ms(1000)));
        assert_eq!(window.until_below(ms(90_000), TENTH, 0), Some(ms(1000)));
    }

    #[test]
    fn the_account_of_a_pipeline_goes_with_what_holds_it() {
        let accounts = Accounts::new(1);
        let namespace = Name::default_namespace();
        let name = |text: &str| text.parse::<Name>().unwrap();
        let deployed = accounts.cpu(&namespace, &name("stays"));
        deployed.charge(ms(7));
        for number in 0..1_000 {
            // A pipeline that is applied and deleted at once.
            drop(accounts.cpu(&namespace, &name(&format!("p{number}"))));
        }
        accounts.forget_unused();
        let account = accounts.of(&namespace);
        let left: Vec<String> = lock(&account.pipelines)
            .keys()
            .map(ToString::to_string)
            .collect();
        assert_eq!(left, ["stays"]);
        assert!(lock(&account.pipelines).capacity() < 1_000);
        // What is deployed is counted on.
        assert_eq!(accounts.cpu(&namespace, &name("stays")).used(), ms(7));
    }

    #[test]
    fn a_namespace_that_is_gone_is_no_other_any_more() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let (here, gone) = (name("here"), name("gone"));
        let accounts = Accounts::new(4);
        let listed = |names: &[&Name]| {
            let all = names
                .iter()
                .map(|name| (Name::clone(name), Quotas::default()));
            accounts.set(all.collect());
        };
        listed(&[&here, &gone]);
        let run = || accounts.enter(&here);
        let shared = [run(), run(), run(), run()];
        assert_eq!(shared.iter().filter(|run| run.is_ok()).count(), 3);
        drop(shared);
        // What it deployed or runs is counted on, though the catalog has it no more.
        let deployed = accounts.cpu(&gone, &name("p"));
        let running = accounts.enter(&gone).unwrap();
        listed(&[&here]);
        accounts.forget_unused();
        assert_eq!(accounts.all.load().len(), 2);
        drop(deployed);
        accounts.forget_unused();
        assert_eq!(accounts.all.load().len(), 2);
        drop(running);
        accounts.forget_unused();
        assert_eq!(accounts.all.load().len(), 1);
        let alone = [run(), run(), run(), run()];
        assert!(alone.iter().all(Result::is_ok));
        // Namespaces that come and go leave nothing.
        for number in 0..100 {
            listed(&[&here, &name(&format!("n{number}"))]);
        }
        listed(&[&here]);
        assert!(accounts.forget_unused());
        assert_eq!(accounts.all.load().len(), 1);
        assert!(!accounts.forget_unused());
    }

    #[test]
    fn cpu_time_of_the_last_minute_counts() {
        let account = Account::new(&Name::default_namespace());
        let seconds = Duration::from_secs;
        assert_eq!(account.cpu_wait(seconds(2), seconds(0)), None);
        account.cpu.charge(ms(1_500));
        assert_eq!(account.cpu_wait(seconds(2), seconds(1)), None);
        account.cpu.charge(ms(1_000));
        let wait = account.cpu_wait(seconds(2), seconds(10));
        assert_eq!(wait, Some(seconds(51)));
        // Another quota, the same memory.
        assert_eq!(account.cpu_wait(seconds(3), seconds(10)), None);
        assert!(account.cpu_wait(seconds(2), seconds(60)).is_some());
        assert_eq!(account.cpu_wait(seconds(2), seconds(61)), None);
    }
}
