//! The threads of a job's processes on this node: as many as there are cores, less one for each process, which trains
//! meanwhile.
//!
//! A launcher may bind each process to cores of its own (srun and mpirun do), and the daemon is born with those of the
//! process that started it. Its threads may run wherever one of its clients may, and are as many as all of them have
//! cores.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::engine::worker;
use crate::refusal::Refusal;

/// Those of one daemon.
#[derive(Default)]
pub(crate) struct Cores(Mutex<State>);

#[derive(Default)]
struct State {
    pool: Weak<rayon::ThreadPool>,
    /// Where the clients may run.
    cpus: CpuSet,
}

impl Cores {
    /// The threads, for a client among so many processes here. What this thread starts from now on may run where they
    /// may.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn workers(&self, client: Pid, here: usize) -> Result<Arc<rayon::ThreadPool>, Refusal> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A machine of more processors than a set holds has none that is bound.
        let own = sched_getaffinity(Some(client)).unwrap_or_default();
        (0..CpuSet::MAX_CPU).filter(|&cpu| own.is_set(cpu)).for_each(|cpu| state.cpus.set(cpu));
        let pool = match state.pool.upgrade() {
            Some(pool) => pool,
            None => worker::pool(cores(&own, here).saturating_sub(here).max(1))?,
        };
        state.pool = Arc::downgrade(&pool);
        let cpus = state.cpus;
        if cpus.count() > 0 {
            let _ = sched_setaffinity(None, &cpus);
            pool.spawn_broadcast(move |_| {
                let _ = sched_setaffinity(None, &cpus);
            });
        }
        Ok(pool)
    }
}

/// Cores that so many processes have together, one of which may run on `own`.
fn cores(own: &CpuSet, here: usize) -> usize {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    // Of all there are the kernel leaves those that the job may have (cpuset); the count is of these, and of a quota.
    let before = sched_getaffinity(None);
    let allowed = sched_setaffinity(None, &all).and_then(|()| sched_getaffinity(None));
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    if let Ok(before) = before {
        let _ = sched_setaffinity(None, &before);
    }
    let (own, allowed) = (own.count() as usize, allowed.map_or(0, |allowed| allowed.count() as usize));
    match own.saturating_mul(here) {
        0 => most,
        // Each has its own.
        together if together <= allowed => most.min(together),
        // They have the same.
        _ => most.min(own),
    }
}
