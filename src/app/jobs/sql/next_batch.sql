-- The age of a job is in its events. The jobs are read in the order of their creation, without row locks.
SELECT job.id,
       job.status NOT IN ('todo', 'doing') AND event.last < now() - CASE job.status
           WHEN 'failed' THEN CAST(:keep_failed AS interval) ELSE CAST(:keep_finished AS interval) END AS is_old,
       event.first > now() - least(CAST(:keep_failed AS interval), CAST(:keep_finished AS interval)) AS is_young
FROM (SELECT id, status FROM procrastinate_jobs WHERE id > :after ORDER BY id LIMIT :batch) AS job
CROSS JOIN LATERAL (
    SELECT min(at) AS first, max(at) AS last FROM procrastinate_events WHERE job_id = job.id
) AS event
ORDER BY job.id
