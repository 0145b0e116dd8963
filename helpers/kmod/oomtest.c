// SPDX-License-Identifier: GPL-2.0-only
/*
 * White box: what user space can neither cause nor count about a system OOM.
 *
 * Only exported interfaces are used, so that the module builds against 5.10 and all later kernels
 * and can be loaded into one of which nothing is known but its build directory.
 *
 * /dev/oomtest takes one command with each write(2):
 *
 *	alloc GFP ORDER BLOCKS CONTEXT
 *		Allocate up to BLOCKS times 2^ORDER pages, and give all of them back. It ends early with
 *		the first call of out_of_memory() for the system, and where the allocator gives up.
 *		GFP is a name in masks[]. CONTEXT is "task" (the writer), "dying" (the writer, with
 *		SIGKILL pending: the write never returns to it), "shared" (the same, but its memory is in
 *		use by somebody who lives on), "dumping" (the writer, as if it dumped its core), "thread"
 *		(one of the kernel's) or "worker" (one of a workqueue's).
 *	hold PAGES REPORT
 *		Keep that many pages and free them from within the next such call, as an OOM notifier
 *		does. With REPORT 0 it keeps that to itself, so that out_of_memory() goes on.
 *	slow MICROSECONDS EVERYBODY
 *		Delay each eventfd's signal that comes from within such a call, and the kill, as an
 *		interrupt might: what walks a list of listeners without holding on to it then meets those
 *		who leave, and who has been told can do something while the OOM goes on. With EVERYBODY 1
 *		delay all other eventfds' signals, too. "met" counts the calls that begin while somebody
 *		else's signal is delayed.
 *
 * read(2) gives the counters, one "NAME VALUE" a line.
 */

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/oom.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/workqueue.h>

/*
 * Where out_of_memory() leaves, in its own order (mm/oom_kill.c, the same from 5.10 to 7.3). Who
 * comes past all of that is about to look for a victim: "due".
 */
enum way { FREED, DYING, NOFS, SYSRQ, DUE, WAYS };

static const char * const way_names[WAYS] = { "freed", "dying", "nofs", "sysrq", "due" };
static unsigned long counts[WAYS];
static unsigned long calls;	/* of out_of_memory() for the system: the sum of counts[] */
static unsigned long own;	/* those of them that the loop itself made */
static struct task_struct *allocating;	/* in the loop; only ever compared */
static unsigned long met;	/* those of them that began while a signal was delayed */
static unsigned long blocks;	/* what the last loop got */
static unsigned long refused;	/* whether it ended because the allocator gave up */

/* Set at the entry of out_of_memory(), read from within: oom_lock is held all that time. */
static struct oom_control *entered;
static struct task_struct *entered_by;	/* only ever compared */

/* What "hold" keeps: each page begins with the next one's address. */
static unsigned long held;
static bool report_held;
static DEFINE_MUTEX(one_command);

static unsigned long push(unsigned long chain, unsigned long block)
{
	*(unsigned long *)block = chain;
	return block;
}

static unsigned long give_back(unsigned long chain, unsigned int order)
{
	unsigned long next, count = 0;

	for (; chain; chain = next, count++) {
		next = *(unsigned long *)chain;
		free_pages(chain, order);
	}
	return count;
}

static int on_entry(struct kprobe *probe, struct pt_regs *regs)
{
	WRITE_ONCE(entered, (struct oom_control *)regs_get_kernel_argument(regs, 0));
	WRITE_ONCE(entered_by, current);
	return 0;
}

static struct kprobe entry = {
	.symbol_name = "out_of_memory",
	.pre_handler = on_entry,
};

static unsigned long delay;	/* in microseconds */
static bool delay_all;
static atomic_t delayed = ATOMIC_INIT(0);

static int on_signal(struct kprobe *probe, struct pt_regs *regs)
{
	if (READ_ONCE(delay) && (READ_ONCE(delay_all) || READ_ONCE(entered_by) == current)) {
		atomic_inc(&delayed);
		udelay(READ_ONCE(delay));
		atomic_dec(&delayed);
	}
	return 0;
}

/* The first is a macro since 6.8. */
static struct kprobe signal_entry = {
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	.symbol_name = "eventfd_signal_mask",
#else
	.symbol_name = "eventfd_signal",
#endif
	.pre_handler = on_signal,
};

static int on_kill(struct kprobe *probe, struct pt_regs *regs)
{
	if (READ_ONCE(delay) && READ_ONCE(entered_by) == current)
		udelay(READ_ONCE(delay));
	return 0;
}

static struct kprobe kill_entry = {
	.symbol_name = "do_send_sig_info",
	.pre_handler = on_kill,
};

static struct kprobe *probes[] = { &entry, &signal_entry, &kill_entry };

static bool drained(struct mm_struct *mm)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
	return mm_flags_test(MMF_OOM_SKIP, mm);
#else
	return test_bit(MMF_OOM_SKIP, &mm->flags);
#endif
}

static struct mm_struct *shared;	/* by a thread of ours; only ever compared */

/*
 * task_will_free_mem(current) as far as a module can tell: other processes that share their mm
 * without being threads of one another, and core dumps, are not looked at; the suite has neither.
 */
static bool current_will_free_mem(void)
{
	if (!current->mm || current->mm == READ_ONCE(shared) || drained(current->mm))
		return false;
	if (current->signal->flags & SIGNAL_GROUP_EXIT)
		return true;
	return thread_group_empty(current) && (current->flags & PF_EXITING);
}

static enum way way_out(const struct oom_control *oc, bool freed)
{
	bool sysrq = oc->order == -1;

	if (freed && !sysrq)
		return FREED;
	if (current_will_free_mem())
		return DYING;
	/* pagefault_out_of_memory() has no mask to give (before 5.16). */
	if (oc->gfp_mask && !(oc->gfp_mask & __GFP_FS))
		return NOFS;
	return sysrq ? SYSRQ : DUE;
}

/*
 * out_of_memory() comes here after it has seen that the killer is not disabled, and only if the
 * OOM is not a memcg's. The last notifier of the chain knows what all of them have freed.
 */
static int on_oom(struct notifier_block *self, unsigned long unused, void *data)
{
	unsigned long *freed = data;
	unsigned long pages = give_back(xchg(&held, 0), 0);
	enum way way;

	if (report_held)
		*freed += pages;
	way = way_out(READ_ONCE(entered), *freed > 0);
	WRITE_ONCE(counts[way], counts[way] + 1);
	if (READ_ONCE(allocating) == current)
		WRITE_ONCE(own, own + 1);
	if (atomic_read(&delayed))
		WRITE_ONCE(met, met + 1);
	WRITE_ONCE(calls, calls + 1);
	return NOTIFY_OK;
}

static struct notifier_block notifier = {
	.notifier_call = on_oom,
	.priority = INT_MIN,
};

struct loop {
	struct work_struct work;
	gfp_t gfp;
	unsigned int order;
	unsigned long limit;
	struct completion done;
};

static const struct {
	const char *name;
	gfp_t gfp;
} masks[] = {
	{ "kernel", GFP_KERNEL },
	{ "nofs", GFP_NOFS },
	{ "noio", GFP_NOIO },
	{ "nofs_account", GFP_NOFS | __GFP_ACCOUNT },
	{ "nofail", GFP_KERNEL | __GFP_NOFAIL },
	{ "nofs_nofail", GFP_NOFS | __GFP_NOFAIL },
	{ "thisnode", GFP_KERNEL | __GFP_THISNODE },
	{ "dma32", GFP_KERNEL | __GFP_DMA32 },
	{ "noretry", GFP_KERNEL | __GFP_NORETRY },
	{ "retry_mayfail", GFP_KERNEL | __GFP_RETRY_MAYFAIL },
};

static int run(void *data)
{
	struct loop *loop = data;
	unsigned long chain = 0, before = READ_ONCE(calls), block;

	blocks = refused = 0;
	WRITE_ONCE(allocating, current);
	while (blocks < loop->limit && READ_ONCE(calls) == before) {
		block = __get_free_pages(loop->gfp | __GFP_NOWARN, loop->order);
		if (!block) {
			refused = 1;
			break;
		}
		chain = push(chain, block);
		blocks++;
		cond_resched();
	}
	WRITE_ONCE(allocating, NULL);
	give_back(chain, loop->order);
	complete(&loop->done);
	return 0;
}

static void run_work(struct work_struct *work)
{
	run(container_of(work, struct loop, work));
}

static void doze(struct work_struct *work)
{
	msleep(20);
}

/*
 * A worker that waits for memory is stood in for by another one. To make that takes memory as well,
 * which kthreadd would run out of first.
 */
static void have_workers(int cpu)
{
	struct work_struct works[3];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(works); i++) {
		INIT_WORK_ONSTACK(&works[i], doze);
		schedule_work_on(cpu, &works[i]);
	}
	for (i = 0; i < ARRAY_SIZE(works); i++) {
		flush_work(&works[i]);
		destroy_work_on_stack(&works[i]);
	}
}

struct sharing {
	struct mm_struct *mm;
	struct completion begun;
};

static int share(void *data)
{
	struct sharing *sharing = data;

	kthread_use_mm(sharing->mm);
	complete(&sharing->begun);
	set_current_state(TASK_INTERRUPTIBLE);
	while (!kthread_should_stop()) {
		schedule();
		set_current_state(TASK_INTERRUPTIBLE);
	}
	__set_current_state(TASK_RUNNING);
	kthread_unuse_mm(sharing->mm);
	return 0;
}

/* To task_will_free_mem() a thread of the kernel's is one of those processes that do not die. */
static int run_shared(struct loop *loop)
{
	struct sharing sharing = { .mm = get_task_mm(current) };
	struct task_struct *thread;

	init_completion(&sharing.begun);
	thread = kthread_run(share, &sharing, "oomtest");
	if (IS_ERR(thread)) {
		mmput(sharing.mm);
		return PTR_ERR(thread);
	}
	wait_for_completion(&sharing.begun);
	WRITE_ONCE(shared, sharing.mm);
	send_sig(SIGKILL, current, 1);
	run(loop);
	WRITE_ONCE(shared, NULL);
	kthread_stop(thread);
	mmput(sharing.mm);
	return 0;
}

static int run_in(const char *context, struct loop *loop)
{
	struct task_struct *thread;
	int cpu;

	init_completion(&loop->done);
	if (!strcmp(context, "thread")) {
		thread = kthread_run(run, loop, "oomtest");
		if (IS_ERR(thread))
			return PTR_ERR(thread);
		wait_for_completion(&loop->done);
		return 0;
	}
	if (!strcmp(context, "worker")) {
		cpu = raw_smp_processor_id();
		have_workers(cpu);
		INIT_WORK_ONSTACK(&loop->work, run_work);
		schedule_work_on(cpu, &loop->work);
		flush_work(&loop->work);
		destroy_work_on_stack(&loop->work);
		return 0;
	}
	if (!strcmp(context, "shared"))
		return run_shared(loop);
	if (!strcmp(context, "dumping")) {
		current->flags |= PF_DUMPCORE;
		run(loop);
		current->flags &= ~PF_DUMPCORE;
		return 0;
	}
	if (!strcmp(context, "dying"))
		send_sig(SIGKILL, current, 1);
	else if (strcmp(context, "task"))
		return -EINVAL;
	return run(loop);
}

static int alloc(const char *mask, const char *context, unsigned int order, unsigned long limit)
{
	struct loop loop = { .order = order, .limit = limit };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(masks); i++)
		if (!strcmp(mask, masks[i].name))
			loop.gfp = masks[i].gfp;
	return loop.gfp ? run_in(context, &loop) : -EINVAL;
}

static int hold(unsigned long pages, bool report)
{
	unsigned long chain = 0, page;

	for (; pages; pages--) {
		page = __get_free_page(GFP_KERNEL | __GFP_NORETRY);
		if (!page) {
			give_back(chain, 0);
			return -ENOMEM;
		}
		chain = push(chain, page);
	}
	report_held = report;
	give_back(xchg(&held, chain), 0);
	return 0;
}

static int obey(const char *line)
{
	char mask[16], context[8];
	unsigned long number;
	unsigned int small;

	if (sscanf(line, "alloc %15s %u %lu %7s", mask, &small, &number, context) == 4)
		return alloc(mask, context, small, number);
	if (sscanf(line, "hold %lu %u", &number, &small) == 2)
		return hold(number, small);
	if (sscanf(line, "slow %lu %u", &number, &small) == 2) {
		WRITE_ONCE(delay_all, small);
		WRITE_ONCE(delay, number);
		return 0;
	}
	return -EINVAL;
}

static ssize_t command(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char line[64];
	int trouble;

	if (size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, text, size))
		return -EFAULT;
	line[size] = '\0';
	trouble = mutex_lock_interruptible(&one_command);
	if (trouble)
		return trouble;
	trouble = obey(line);
	mutex_unlock(&one_command);
	return trouble ?: size;
}

static ssize_t tell(struct file *file, char __user *buffer, size_t size, loff_t *at)
{
	char text[256];
	int i, used;

	used = scnprintf(text, sizeof(text), "own %lu\nmet %lu\nblocks %lu\nrefused %lu\n",
			 READ_ONCE(own), READ_ONCE(met), READ_ONCE(blocks), READ_ONCE(refused));
	for (i = 0; i < WAYS; i++)
		used += scnprintf(text + used, sizeof(text) - used, "%s %lu\n", way_names[i],
				  READ_ONCE(counts[i]));
	return simple_read_from_buffer(buffer, size, at, text, used);
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.read = tell,
	.write = command,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "oomtest",
	.fops = &operations,
	.mode = 0600,
};

static int __init begin(void)
{
	int trouble = register_kprobes(probes, ARRAY_SIZE(probes));

	if (trouble)
		return trouble;
	trouble = register_oom_notifier(&notifier);
	if (trouble)
		goto no_notifier;
	trouble = misc_register(&device);
	if (!trouble)
		return 0;
	unregister_oom_notifier(&notifier);
no_notifier:
	unregister_kprobes(probes, ARRAY_SIZE(probes));
	return trouble;
}

static void __exit end(void)
{
	misc_deregister(&device);
	unregister_oom_notifier(&notifier);
	unregister_kprobes(probes, ARRAY_SIZE(probes));
	give_back(held, 0);
}

module_init(begin);
module_exit(end);
MODULE_DESCRIPTION("White-box trigger and counter for tests of system OOM notification");
MODULE_LICENSE("GPL");
