-- A job that is scheduled for later, such as a retry, is not late. An index serves each status, so the statement does not
-- read the finished jobs, of which there may be millions.
SELECT count(*) FILTER (WHERE due <= now()) AS waiting,
       count(*) FILTER (WHERE due > now()) AS scheduled,
       (SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing') AS running,
       (SELECT count(*) FROM procrastinate_jobs WHERE status = 'failed') AS failed,
       coalesce(extract(epoch FROM now() - min(due) FILTER (WHERE due <= now())), 0) AS lateness
FROM (
    SELECT coalesce(scheduled_at, (SELECT max(at) FROM procrastinate_events WHERE job_id = job.id), now()) AS due
    FROM procrastinate_jobs job WHERE status = 'todo'
) AS unfinished
