//! Known bugs that the simulator's tests plant, to prove that its oracles find them.
//!
//! A mutant acts only where the crate is built with the feature `sim`: without it planting one is a constant and the
//! planted lines are gone. Each is a fault that an implementation of this protocol has had, or that `docs/protocol.md`
//! warns of.

macro_rules! mutants {
    ($($name:ident, $text:literal, $what:literal;)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Mutant {
            $(#[doc = $what] $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As it is named on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// What is wrong then.
            pub const fn what(self) -> &'static str {
                match self {
                    $(Self::$name => $what,)*
                }
            }
        }
    };
}

mutants! {
    // Quorums.
    QuorumAsTotal, "quorum-as-total", "A quorum counts nodes in all, not zones that reach their threshold.";
    Phase1OneShort, "phase1-one-short", "Phase 1 ends with one promise too few.";
    Phase2OneShort, "phase2-one-short", "An entry is committed with one ack too few.";
    SentCountsAsAcked, "sent-counts-as-acked", "What was put on a link counts as acked.";
    NewcomerVotes, "newcomer-votes", "A node that lost its memory is let in and counted as if it had not.";

    // Configuration versions.
    MergeFromOne, "merge-from-one", "A newcomer votes when it has learned from one member.";
    MergeKeepsLowest, "merge-keeps-lowest", "Of what is accepted for a slot, a newcomer keeps the lowest ballot's.";
    MergeWithoutTails, "merge-without-tails", "A newcomer takes over what is executed, not what is accepted.";
    VersionByOne, "version-by-one", "One vote decides a configuration version.";
    LowerVersionsTaken, "lower-versions-taken", "Frames of another configuration version are handled.";
    NewcomerSkipsMerge, "newcomer-skips-merge", "A newcomer that is named votes at once.";
    ForgetfulVouch, "forgetful-vouch", "One member that has met no other incarnation is enough to vouch for a newcomer.";

    // Phase 1.
    PromiseWithoutDecided, "promise-without-decided", "A promise leaves out the slots that are known to be decided.";
    PromiseWithoutState, "promise-without-state", "A promise leaves out what is executed: neither watermark nor state.";
    PromiseKeepsLead, "promise-keeps-lead", "An owner that promises another goes on as owner.";
    PromiseOfAnotherBallot, "promise-of-another-ballot", "A promise counts whatever ballot it is for.";
    BallotsWithoutNode, "ballots-without-node", "Acceptors compare rounds only, so that two nodes can own one round.";
    LowestBallotTaken, "lowest-ballot-taken", "Of the commands reported for a slot, the lowest ballot's is taken over.";
    FirstCommandTaken, "first-command-taken", "Of the commands reported for a slot, the first is taken over.";
    FirstStateTaken, "first-state-taken", "The first state reported is taken over, not the most advanced.";
    OwnTailForgotten, "own-tail-forgotten", "A new owner does not look at what it has accepted itself.";
    GapNotFilled, "gap-not-filled", "A slot that nobody reports, below one that somebody does, is left empty.";
    HandoverWithoutPhase1, "handover-without-phase1", "A node that is offered an object leads it without asking anybody.";
    HomeNotPromised, "home-not-promised", "Home ballots are known to their owners only.";
    HomeAfterRestart, "home-after-restart", "A home owner goes on at its home ballot after a restart.";
    PromiseBeforeDurable, "promise-before-durable", "Promises leave before the log has them.";
    PrepareBeforeDurable, "prepare-before-durable", "A Prepare leaves before its own promise is durable.";
    PrepareBeforeOwnRecord, "prepare-before-own-record", "A Prepare that is repeated does not wait for the record of its candidacy.";
    PrepareOnce, "prepare-once", "A Prepare is never sent again.";

    // Phase 2: the owner.
    WithdrawnSent, "withdrawn-sent", "Entries that were withdrawn before they were sent go in full.";
    WithdrawnCommitted, "withdrawn-committed", "The watermark commits withdrawn entries too.";
    RefusalKeepsLead, "refusal-keeps-lead", "A refusal withdraws its entry, but does not end the lead.";
    RefusalsAfterAck, "refusals-after-ack", "The number in an ack counts before the refusals beside it.";
    OwnAcceptBeforeDurable, "own-accept-before-durable", "The owner counts itself before its log has the entries.";
    CommitWaits, "commit-waits", "A watermark waits for the next batch to ride in, however long.";
    ResumeAcksOneMore, "resume-acks-one-more", "A resume counts as an ack of the entry behind it.";
    ResumeOneLate, "resume-one-late", "A stream is resumed one entry too late, and nobody notices.";
    TrimUnannounced, "trim-unannounced", "The stream forgets frames, and exceptions, above the announced watermark.";
    StreamNeverTrimmed, "stream-never-trimmed", "The stream keeps all its frames.";
    UnackedUnbounded, "unacked-unbounded", "A member is sent the stream however much of it it has not acknowledged.";
    LogNeverFull, "log-never-full", "A node takes writes however much waits for its disk.";
    StreamNumbersReused, "stream-numbers-reused", "A stream keeps its name over a restart, its numbers begin anew.";
    OldStreamCounted, "old-stream-counted", "What a receiver says of an earlier boot's stream counts for this one.";

    // Phase 2: the receiver.
    AcceptBelowPromised, "accept-below-promised", "An entry below the promise is accepted.";
    AcceptDoesNotRaise, "accept-does-not-raise", "Accepting an entry does not raise the promise to its ballot.";
    RefusalsNotSent, "refusals-not-sent", "Acks name no refusals: who refused an entry is counted for it.";
    RefusalsOnce, "refusals-once", "A refusal is sent once, not until the watermark has passed it.";
    ResumeWithoutRefusals, "resume-without-refusals", "A resume names no refusals.";
    AckBeforeDurable, "ack-before-durable", "Acks leave before the log has the entries.";
    ResumeBeforeDurable, "resume-before-durable", "A resume names entries that the log does not have yet.";
    ExceptionsSkipped, "exceptions-skipped", "A list of exceptions is lost on resume, and the next watermark followed.";
    TailExecuted, "tail-executed", "Who refused an entry that is committed executes what its own tail has in the slot.";
    OutOfOrder, "out-of-order", "A decided slot is executed before those that are missing below it.";
    StreamCarriedOver, "stream-carried-over", "A new boot's stream goes on with what was known of the old one's.";
    InboundNeverDropped, "inbound-never-dropped", "Received frames are kept when the watermark has passed them.";

    // Catching up.
    SkipWithoutState, "skip-without-state", "Who missed trimmed entries is told to skip them, and gets no state.";
    SkipForgotten, "skip-forgotten", "A receiver does not remember that state is missing behind a skip.";
    OlderStateInstalled, "older-state-installed", "A state is installed though one's own is newer.";
    InstallLowersPromise, "install-lowers-promise", "A state brings its sender's promise, a lower one too.";
    InstallForgetsSessions, "install-forgets-sessions", "A state is installed without its writers' sessions.";
    GapNeverAsked, "gap-never-asked", "A missing slot is waited for, never asked for.";
    OrphansLeft, "orphans-left", "Nobody finishes the entries of dead streams.";
    WithdrawnLeft, "withdrawn-left", "Nobody finishes entries that were withdrawn though nobody took their object.";
    InstalledUntold, "installed-untold", "Who installs a state in phase 1 fills no slot above it, so that others hear nothing.";
    EndedStreamsFull, "ended-streams-full", "Who remembers enough ended streams of an owner learns of no later one.";
    CatchUpUnlogged, "catch-up-unlogged", "What a catch-up or a survey brought is there after a restart, but no claim to it.";
    CheckpointWithoutTails, "checkpoint-without-tails", "A checkpoint keeps what is executed, not what is accepted.";
    CheckpointWithoutRefusals, "checkpoint-without-refusals", "A checkpoint forgets what was refused.";
    CheckpointUnclaimed, "checkpoint-unclaimed", "A checkpoint shows what its node has committed, and nothing says that it has.";
    CheckpointForgetsPromises, "checkpoint-forgets-promises", "A checkpoint keeps what is accepted, not what is promised.";
    RaisesUnlogged, "raises-unlogged", "What was refused because of hearsay is accepted by the replay.";
    RestartForgetsPromises, "restart-forgets-promises", "A restart keeps what was accepted, and forgets what was promised.";
    RestartForgetsRefusals, "restart-forgets-refusals", "A restart forgets what was refused.";
    RestartKeepsLead, "restart-keeps-lead", "An owner goes on at its old ballot after a restart.";

    // The log.
    DurableBeforeWritten, "durable-before-written", "A record counts as durable as soon as its write has begun.";
    CheckpointUnawaited, "checkpoint-unawaited", "A checkpoint is whole before the records that it may show are durable.";
    CheckpointUnsynced, "checkpoint-unsynced", "A checkpoint gets its name before its bytes are durable.";
    CheckpointNameUnsynced, "checkpoint-name-unsynced", "A checkpoint frees the log before its name is durable.";
    SegmentsFreedEarly, "segments-freed-early", "Segments are used again before the checkpoint that frees them is durable.";
    UsesCountedAnew, "uses-counted-anew", "Uses of segments have the numbers of an earlier boot.";

    // Requests.
    RetryExecutedTwice, "retry-executed-twice", "A command is executed as often as it is decided.";
    SessionVouches, "session-vouches", "A new session vouches for ids that a dropped one of its client may have executed.";
    RerouteUnmarked, "reroute-unmarked", "What may have been executed is sent again as if it were new.";
    LimboGuessed, "limbo-guessed", "A withdrawn entry's request is told that it was not done.";
    AnswersWaiting, "answers-waiting", "A command taken over from another owner answers a request that waits here.";
    ForwardReplyByPlace, "forward-reply-by-place", "A late answer goes to whoever has the request's place now.";
    NeverSuspected, "never-suspected", "Nobody takes a silent owner for dead.";
    ForwardLeft, "forward-left", "A forwarded request is left to the other node, whatever happens.";

    // Reads.
    ReadWithoutRound, "read-without-round", "The owner reads without asking anybody.";
    ReadOneShort, "read-one-short", "A read is confirmed by one node too few.";
    ReadBeforeSettled, "read-before-settled", "The owner reads before it has executed what it took over.";
    ReadJoinsAskedRound, "read-joins-asked-round", "A read joins a round that was asked before it came.";
    ReadAfterDeposition, "read-after-deposition", "A round answers reads of objects that went to another owner meanwhile.";
    ObjectionNotSent, "objection-not-sent", "Who promised higher confirms a read all the same.";
    ConfirmByCandidate, "confirm-by-candidate", "Who has promised higher to itself, as a candidate or new owner, confirms a read.";
    SilentObjection, "silent-objection", "Who promised higher does not answer a round at all.";
    ReadMakesObject, "read-makes-object", "A read of what nobody has heard of takes it into phase 1.";
    AbsentUnasked, "absent-unasked", "What a node has not heard of is not found, without asking anybody.";
    ProbeOneShort, "probe-one-short", "What one node less than a Q1 has not heard of is not found.";
    LearnerProbed, "learner-probed", "A node without a vote says what it has not heard of.";
    ObjectionsIgnored, "objections-ignored", "An owner takes an objection for a confirmation.";
}

impl Mutant {
    /// The mutant with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }

    /// Whether this one is planted.
    #[inline(always)]
    pub(crate) fn is_in(self, planted: Option<Self>) -> bool {
        cfg!(feature = "sim") && planted == Some(self)
    }
}
