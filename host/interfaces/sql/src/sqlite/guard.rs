//! What confines a guest's SQL on SQLite: an authorizer that lists what is allowed, bounds on memory and statement size, an interrupt at the
//! deadline, and a look at each statement before it runs. All `unsafe` of this crate is here.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libsqlite3_sys as ffi;
use sqlx::sqlite::LockedSqliteHandle;
use stepwell_core::{CpuAccount, thread_time};

use crate::SqlError;
use crate::client::Access;
use crate::permit::Permit;
use crate::statement::{MAX_PARAMETERS, MAX_RESULT_BYTES, MAX_SQL};

use super::error::from_code;

/// Columns of a table or a result. SQLite's own bound is 2000, which times the length of a value is more than a host can hold.
const MAX_COLUMNS: c_int = 200;
/// Instructions between two looks at the memory in use. Each may make a value of 8 MiB.
const INSTRUCTIONS: c_int = 8;
/// Such looks between two at the clock.
const LOOKS: u32 = 25;
/// Bytes that SQLite may hold, all connections of the process together, before guests' statements are stopped.
const MAX_MEMORY: i64 = 512 << 20;
/// Growth since a statement began up to which it goes on all the same: what others hold is not its fault.
const SHARE: i64 = 32 << 20;

/// Stops a connection's statement when its time is up, or when SQLite holds too much memory.
#[derive(Debug, Default)]
pub(super) struct Interrupt {
    /// Milliseconds after [`START`]; 0 is in the past.
    deadline: AtomicU64,
    /// What SQLite held when the statement began.
    before: AtomicI64,
    /// Only the connection's thread counts them while a statement runs.
    looks: AtomicU32,
    out_of_memory: AtomicBool,
    /// Kept for a connection that nobody waits for any more. The connection has this, so it goes when the connection does.
    permit: Mutex<Option<Permit>>,
    /// Who is charged for what the connection's thread computes.
    cpu: Mutex<Option<Arc<CpuAccount>>>,
}

thread_local! {
    /// CPU time of a connection's thread when its last statement had ended.
    static CHARGED: Cell<Option<Duration>> = const { Cell::new(None) };
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Interrupt {
    /// Lets the next statement run until `deadline`.
    pub(super) fn arm(&self, deadline: Instant) {
        let millis = deadline.saturating_duration_since(*START).as_millis();
        self.out_of_memory.store(false, Ordering::Relaxed);
        self.looks.store(0, Ordering::Relaxed);
        self.before.store(memory_used(), Ordering::Relaxed);
        self.deadline
            .store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Stops what runs now.
    pub(super) fn stop(&self) {
        self.deadline.store(0, Ordering::Relaxed);
    }

    /// Whether the last interruption was for memory.
    pub(super) fn was_out_of_memory(&self) -> bool {
        self.out_of_memory.load(Ordering::Relaxed)
    }

    /// Gives the permit back when the connection's thread has ended.
    pub(super) fn keep(&self, permit: Permit) {
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
    }

    /// Charges this account from now on.
    pub(super) fn charge_to(&self, cpu: Option<&Arc<CpuAccount>>) {
        *self.cpu.lock().unwrap_or_else(PoisonError::into_inner) = cpu.cloned();
    }

    /// Called on the connection's thread when a statement begins to run, and when it has ended: then everything is charged that the
    /// thread has computed since the last one, so that compiling it is too.
    fn note_time(&self, ended: bool) {
        let charged = CHARGED.get();
        if charged.is_some() && !ended {
            return;
        }
        let now = thread_time();
        CHARGED.set(Some(now));
        if let Some(charged) = charged
            && let Some(cpu) = &*self.cpu.lock().unwrap_or_else(PoisonError::into_inner)
        {
            cpu.charge(now.saturating_sub(charged));
        }
    }

    /// Whether a statement goes on while SQLite holds so many bytes, and held so many when it began.
    pub(super) fn goes_on_with(&self, used: i64, before: i64) -> bool {
        let too_much = used > MAX_MEMORY && used - before > SHARE;
        if too_much {
            self.out_of_memory.store(true, Ordering::Relaxed);
        }
        !too_much
    }

    fn may_go_on(&self) -> bool {
        if !self.goes_on_with(memory_used(), self.before.load(Ordering::Relaxed)) {
            return false;
        }
        let looks = self.looks.load(Ordering::Relaxed);
        self.looks.store(looks.wrapping_add(1), Ordering::Relaxed);
        if !looks.is_multiple_of(LOOKS) {
            return true;
        }
        let deadline = self.deadline.load(Ordering::Relaxed);
        START.elapsed().as_millis() < u128::from(deadline)
    }
}

/// Bytes that SQLite holds, all connections of the process together.
fn memory_used() -> i64 {
    #[allow(unsafe_code, reason = "sqlite3_memory_used has no safe wrapper")]
    // SAFETY: it takes no arguments and is thread-safe.
    unsafe {
        ffi::sqlite3_memory_used()
    }
}

/// Confines a new connection for good.
pub(super) fn confine(
    handle: &mut LockedSqliteHandle<'_>,
    access: Access,
    interrupt: &Arc<Interrupt>,
) -> Result<(), SqlError> {
    let watched = Arc::clone(interrupt);
    handle.set_progress_handler(INSTRUCTIONS, move || watched.may_go_on());
    let db = handle.as_raw_handle().as_ptr();
    let limits = [
        (ffi::SQLITE_LIMIT_LENGTH, bound(MAX_RESULT_BYTES)),
        (ffi::SQLITE_LIMIT_SQL_LENGTH, bound(MAX_SQL)),
        (ffi::SQLITE_LIMIT_COLUMN, MAX_COLUMNS),
        (ffi::SQLITE_LIMIT_EXPR_DEPTH, 200),
        (ffi::SQLITE_LIMIT_COMPOUND_SELECT, 100),
        (ffi::SQLITE_LIMIT_VDBE_OP, 1_000_000),
        (ffi::SQLITE_LIMIT_ATTACHED, 0),
        (ffi::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
        (ffi::SQLITE_LIMIT_VARIABLE_NUMBER, bound(MAX_PARAMETERS)),
        (ffi::SQLITE_LIMIT_TRIGGER_DEPTH, 50),
        (ffi::SQLITE_LIMIT_WORKER_THREADS, 0),
    ];
    let settings = [
        (ffi::SQLITE_DBCONFIG_DEFENSIVE, 1),
        (ffi::SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),
        (ffi::SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0),
        (ffi::SQLITE_DBCONFIG_WRITABLE_SCHEMA, 0),
    ];
    let authorizer = match access {
        Access::Read => authorize_read,
        Access::Write => authorize_write,
    };
    #[allow(
        unsafe_code,
        reason = "sqlx has no safe way to set limits and an authorizer"
    )]
    // SAFETY: the locked handle is a live connection that no other thread uses meanwhile. The variadic arguments are those that the
    // documentation of each setting asks for (int, int*). The authorizers are functions that use no user data, so nothing can
    // be freed before the connection is. What `traced` uses is the connection's client data: SQLite frees that when it closes the
    // connection, after the last statement is gone, or now if it has no memory for it, and then nothing is traced.
    let code = unsafe {
        let watched = Arc::into_raw(Arc::clone(interrupt)).cast_mut().cast();
        let kept = ffi::sqlite3_set_clientdata(db, WATCHED.as_ptr(), watched, Some(let_go));
        let events = ffi::SQLITE_TRACE_STMT | ffi::SQLITE_TRACE_PROFILE;
        if kept == ffi::SQLITE_OK {
            ffi::sqlite3_trace_v2(db, events, Some(traced), watched);
        }
        for (id, value) in limits {
            ffi::sqlite3_limit(db, id, value);
        }
        settings
            .into_iter()
            .map(|(setting, value)| {
                ffi::sqlite3_db_config(db, setting, value as c_int, ptr::null_mut::<c_int>())
            })
            .chain([kept])
            .chain([ffi::sqlite3_set_authorizer(
                db,
                Some(authorizer),
                ptr::null_mut(),
            )])
            .find(|code| *code != ffi::SQLITE_OK)
    };
    match code {
        None => Ok(()),
        Some(code) => Err(SqlError::internal(format!(
            "a connection cannot be confined: SQLite code {code}"
        ))),
    }
}

/// The name of a connection's client data.
const WATCHED: &CStr = c"stepwell";

#[allow(unsafe_code, reason = "SQLite calls it with what it was given")]
unsafe extern "C" fn traced(
    event: c_uint,
    watched: *mut c_void,
    _: *mut c_void,
    _: *mut c_void,
) -> c_int {
    // SAFETY: it is the connection's client data, of which `let_go` has not been called as long as there are statements.
    let interrupt = unsafe { &*watched.cast::<Interrupt>() };
    interrupt.note_time(event == ffi::SQLITE_TRACE_PROFILE);
    0
}

#[allow(unsafe_code, reason = "SQLite calls it with what it was given")]
unsafe extern "C" fn let_go(watched: *mut c_void) {
    // SAFETY: it came from `Arc::into_raw`, and SQLite calls this once.
    drop(unsafe { Arc::from_raw(watched.cast::<Interrupt>()) });
}

/// Whether a transaction is open.
pub(super) fn in_transaction(handle: &mut LockedSqliteHandle<'_>) -> bool {
    let db = handle.as_raw_handle();
    #[allow(unsafe_code, reason = "sqlx counts only transactions that it began")]
    // SAFETY: the locked handle is a live connection.
    let autocommit = unsafe { ffi::sqlite3_get_autocommit(db.as_ptr()) };
    autocommit == 0
}

fn bound(value: usize) -> c_int {
    c_int::try_from(value).unwrap_or(c_int::MAX)
}

extern "C" fn authorize_read(
    _: *mut c_void,
    action: c_int,
    _: *const c_char,
    detail: *const c_char,
    _: *const c_char,
    _: *const c_char,
) -> c_int {
    allow(reads(action, detail))
}

extern "C" fn authorize_write(
    _: *mut c_void,
    action: c_int,
    _: *const c_char,
    detail: *const c_char,
    database: *const c_char,
    _: *const c_char,
) -> c_int {
    // What is temporary would be seen by the connection's next user. SQLite itself updates the schema of what is temporary when a table is renamed.
    let temporary = action != ffi::SQLITE_UPDATE && is_one_of(database, &["temp"]);
    allow(reads(action, detail) || (writes(action) && !temporary))
}

fn allow(allowed: bool) -> c_int {
    if allowed {
        ffi::SQLITE_OK
    } else {
        ffi::SQLITE_DENY
    }
}

/// Transactions are on this list since the host's own go the same way; a guest's are refused by their first keyword.
fn reads(action: c_int, detail: *const c_char) -> bool {
    match action {
        ffi::SQLITE_SELECT | ffi::SQLITE_READ | ffi::SQLITE_RECURSIVE | ffi::SQLITE_TRANSACTION => {
            true
        }
        ffi::SQLITE_FUNCTION => !is_one_of(detail, &["load_extension", "fts3_tokenizer"]),
        _ => false,
    }
}

/// Tables and indexes, but nothing temporary and nothing virtual.
fn writes(action: c_int) -> bool {
    matches!(
        action,
        ffi::SQLITE_INSERT
            | ffi::SQLITE_UPDATE
            | ffi::SQLITE_DELETE
            | ffi::SQLITE_CREATE_TABLE
            | ffi::SQLITE_CREATE_INDEX
            | ffi::SQLITE_CREATE_VIEW
            | ffi::SQLITE_CREATE_TRIGGER
            | ffi::SQLITE_DROP_TABLE
            | ffi::SQLITE_DROP_INDEX
            | ffi::SQLITE_DROP_VIEW
            | ffi::SQLITE_DROP_TRIGGER
            | ffi::SQLITE_ALTER_TABLE
            | ffi::SQLITE_REINDEX
            | ffi::SQLITE_ANALYZE
    )
}

/// Whether a name that the authorizer was called with is one of these; none at all is not.
fn is_one_of(name: *const c_char, names: &[&str]) -> bool {
    if name.is_null() {
        return false;
    }
    #[allow(unsafe_code, reason = "the authorizer is called with C strings")]
    // SAFETY: SQLite passes a zero-terminated string that lives as long as the call, and it is not null.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    names
        .iter()
        .any(|other| name.eq_ignore_ascii_case(other.as_bytes()))
}

/// What a statement is, seen before it runs.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// Name and declared type of each column of the result.
    pub(super) columns: Vec<(String, Option<String>)>,
    /// The largest N of the parameters `$N`.
    pub(super) parameters: usize,
    /// Whether it leaves the database as it is.
    pub(super) reads_only: bool,
}

/// Compiles `sql` under the connection's authorizer: it must be exactly one statement, with parameters of the form `$N`.
pub(super) fn inspect(handle: &mut LockedSqliteHandle<'_>, sql: &str) -> Result<Shape, SqlError> {
    let db = handle.as_raw_handle();
    let mut rest = sql.as_bytes();
    let mut found = None;
    while !rest.is_empty() {
        let (statement, tail) = match compile(db, rest) {
            Ok((None, tail)) => (None, tail),
            // Whatever follows the first statement is one too many, even if it is none.
            Ok((Some(_), _)) | Err(_) if found.is_some() => {
                return Err(SqlError::invalid(
                    "42601",
                    "only one statement may be run at a time",
                ));
            }
            compiled => compiled?,
        };
        if let Some(statement) = statement {
            found = Some(shape(&statement)?);
        }
        rest = tail;
    }
    found.ok_or_else(|| SqlError::invalid("42601", "there is no statement"))
}

struct Compiled(NonNull<ffi::sqlite3_stmt>);

impl Drop for Compiled {
    #[allow(unsafe_code, reason = "a prepared statement is freed by SQLite")]
    fn drop(&mut self) {
        // SAFETY: the statement came from sqlite3_prepare_v3 and is finalized once.
        unsafe { ffi::sqlite3_finalize(self.0.as_ptr()) };
    }
}

#[allow(unsafe_code, reason = "sqlx does not tell one statement from several")]
fn compile(db: NonNull<ffi::sqlite3>, sql: &[u8]) -> Result<(Option<Compiled>, &[u8]), SqlError> {
    let mut statement = ptr::null_mut();
    let mut tail = ptr::null();
    // SAFETY: `db` is locked by the caller; pointer and length describe `sql`, which outlives the call; both out-pointers are valid.
    let code = unsafe {
        ffi::sqlite3_prepare_v3(
            db.as_ptr(),
            sql.as_ptr().cast(),
            bound(sql.len()),
            0,
            &raw mut statement,
            &raw mut tail,
        )
    };
    if code != ffi::SQLITE_OK {
        // SAFETY: the message is a zero-terminated string that is valid until the next call on `db`.
        let (code, message) = unsafe {
            (
                ffi::sqlite3_extended_errcode(db.as_ptr()),
                text(ffi::sqlite3_errmsg(db.as_ptr())),
            )
        };
        return Err(from_code(code, message.unwrap_or_default()));
    }
    let consumed = (tail as usize).saturating_sub(sql.as_ptr() as usize);
    let rest = sql.get(consumed..).unwrap_or_default();
    // SQLite consumes at least a byte of what is not empty; should it not, this must not go on for ever.
    let rest = if consumed == 0 { &[] } else { rest };
    Ok((NonNull::new(statement).map(Compiled), rest))
}

#[allow(
    unsafe_code,
    reason = "sqlx keeps declared types and parameter names to itself"
)]
fn shape(statement: &Compiled) -> Result<Shape, SqlError> {
    let raw = statement.0.as_ptr();
    let mut shape = Shape::default();
    // SAFETY: the statement is live, indices stay within the counts that SQLite gives, and its strings are copied at once.
    unsafe {
        shape.reads_only = ffi::sqlite3_stmt_readonly(raw) != 0;
        for index in 0..ffi::sqlite3_column_count(raw) {
            shape.columns.push((
                text(ffi::sqlite3_column_name(raw, index)).unwrap_or_default(),
                text(ffi::sqlite3_column_decltype(raw, index)),
            ));
        }
        for index in 1..=ffi::sqlite3_bind_parameter_count(raw) {
            let name = text(ffi::sqlite3_bind_parameter_name(raw, index)).unwrap_or_default();
            shape.parameters = shape.parameters.max(number(&name)?);
        }
    }
    Ok(shape)
}

/// The N of `$N`.
fn number(name: &str) -> Result<usize, SqlError> {
    name.strip_prefix('$')
        .filter(|digits| {
            !digits.starts_with('0') && digits.bytes().all(|digit| digit.is_ascii_digit())
        })
        .and_then(|digits| digits.parse().ok())
        .filter(|number| *number <= MAX_PARAMETERS)
        .ok_or_else(|| SqlError::invalid("42P02", "parameters are written $1, $2 and so on"))
}

/// Copies a C string.
#[allow(unsafe_code, reason = "SQLite answers C strings")]
unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the caller passes what SQLite answered: a zero-terminated string that is still valid.
    let text = unsafe { CStr::from_ptr(pointer) };
    Some(text.to_string_lossy().into_owned())
}
